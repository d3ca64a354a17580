// Command get fetches what the demo needs into the cache folder. It is built in seconds: `make demo` runs it while the
// compiler still works on qmigrate.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"qmigrate/guest/debian"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	what := debian.ForDemo()
	errs := make([]error, len(what))
	var all sync.WaitGroup
	for i, w := range what {
		all.Go(func() { _, errs[i] = debian.Ensure(ctx, w, os.Stderr) })
	}
	all.Wait()
	status := 0
	for _, err := range errs {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	stop()
	os.Exit(status)
}
