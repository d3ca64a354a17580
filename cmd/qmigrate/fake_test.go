package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// fake is a monitor that is none, or a bad one. It serves one client at a time, as QEMU does.
type fake struct {
	before  string            // sent at once: a greeting, or something else
	answers int               // how many commands are answered; -1 all
	replies map[string]string // the answers' return values; {} for others
	flood   string            // then sent for ever
	hangUp  bool              // then
	cut     int               // hang up before this message of ours, from 0 the greeting; half of it is sent where half is set
	half    bool
	cutting bool
	dead    atomic.Bool
}

// died tells whether it came to the cut.
func (f *fake) died() bool { return f.dead.Load() }

// serve listens until stop.
func (f *fake) serve(path string) (stop func(), err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var now net.Conn
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			now = c
			mu.Unlock()
			f.talk(c)
			if f.died() {
				l.Close() // as of a QEMU that has died: nobody listens any more
			}
			c.Close()
		}
	})
	return func() {
		l.Close()
		mu.Lock()
		if now != nil {
			now.Close()
		}
		mu.Unlock()
		all.Wait()
	}, nil
}

// say sends one message, or hangs up.
func (f *fake) say(c net.Conn, n int, text string) bool {
	if f.cutting && n == f.cut {
		f.dead.Store(true)
		if f.half {
			_, _ = io.WriteString(c, text[:len(text)/2])
		}
		return false
	}
	_, err := io.WriteString(c, text)
	return err == nil
}

func (f *fake) talk(c net.Conn) {
	if !f.say(c, 0, f.before) {
		return
	}
	in := bufio.NewReader(c)
	for n := 1; f.answers < 0 || n <= f.answers; n++ {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var command struct {
			Execute string          `json:"execute"`
			ID      json.RawMessage `json:"id"`
			With    struct {
				Property string `json:"property"`
			} `json:"arguments"`
		}
		if json.Unmarshal(line, &command) != nil {
			return
		}
		reply := f.replies[command.Execute]
		if r, ok := f.replies[command.Execute+" "+command.With.Property]; ok {
			reply = r
		}
		if reply == "" {
			reply = "{}"
		}
		answer := fmt.Sprintf(`{"return": %s, "id": %s}`+"\n", reply, command.ID)
		if command.ID == nil {
			answer = strings.Replace(answer, `, "id": `, "", 1)
		}
		if !f.say(c, n, answer) {
			return
		}
	}
	for f.flood != "" {
		if _, err := io.WriteString(c, strings.Repeat(f.flood, 100)); err != nil {
			return
		}
	}
	if !f.hangUp {
		_, _ = io.Copy(io.Discard, in)
	}
}
