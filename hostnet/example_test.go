package hostnet_test

import (
	"context"
	"fmt"
	"io"
	"os"

	"qmigrate/hostnet"
)

// What is wrong with a network is known before anything is made.
func ExampleSpec() {
	s := hostnet.Spec{Owner: "demo", Rate: 125_000_000}
	fmt.Println(s.Validate())
	s.Rate = 1
	fmt.Println(s.Validate())
	// Output:
	// <nil>
	// rate of 1 bytes/s: at least 1000
}

// Two hosts on a link of 1 Gbit/s. It takes root, or namespaces as Reexec makes them.
func ExampleSpec_Apply() {
	ctx := context.Background()
	spec := hostnet.Spec{Owner: fmt.Sprint("example-", os.Getpid()), Rate: 125_000_000}
	network, err := spec.Apply(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer network.Close() // ends what runs on the hosts, and removes all of it

	a, b := network.Host("a"), network.Host("b")
	l, err := b.Listen(ctx, "tcp", network.Address("b").String()+":0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	go func() {
		if c, err := a.Dial(ctx, "tcp", l.Addr().String()); err == nil {
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	c, err := l.Accept()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	text, err := io.ReadAll(c)
	fmt.Printf("%s hears: %s %v\n", network.Address("b"), text, err)
	// Output: 10.77.0.12 hears: hello <nil>
}
