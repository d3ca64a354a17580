package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// atOnce is how many requests are worked on beside each other; the next waits in the port.
const atOnce = 16

// serve answers the host's requests until the port is closed: each on its own, so that hello need not wait for verify.
func (a *agent) serve() {
	slots := make(chan struct{}, atOnce)
	a.port.lines(func(line []byte, err error) {
		var req wire.Request
		if err == nil {
			req, err = wire.DecodeRequest(line)
		}
		if err != nil {
			a.port.garbage.Add(1)
			a.port.send(encode(wire.Reply{Error: err.Error()}), false)
			return
		}
		slots <- struct{}{}
		a.spawn("request "+req.Do, func() {
			defer func() { <-slots }()
			a.port.send(encode(a.answer(req)), false)
			if req.Do == wire.DoPoweroff {
				time.Sleep(100 * time.Millisecond) // QEMU takes the reply from the ring
				a.off()
			}
		})
	})
}

func (a *agent) answer(req wire.Request) wire.Reply {
	result, err := a.do(req)
	if err != nil {
		return wire.Reply{ID: req.ID, Error: err.Error()}
	}
	return wire.Reply{ID: req.ID, Result: quote(result)}
}

func (a *agent) do(req wire.Request) (any, error) {
	switch req.Do {
	case wire.DoHello:
		return a.hello(), nil
	case wire.DoFill:
		return ask(req, a.fillAsked)
	case wire.DoVerify:
		start := a.clock.now()
		v, err := a.mem.verify()
		v.Duration = a.clock.now() - start
		return v, err
	case wire.DoCorrupt:
		return ask(req, func(c wire.Corrupt) (struct{}, error) { return struct{}{}, a.mem.corrupt(c.Page) })
	case wire.DoWorkloadStart:
		return ask(req, a.startWorkload)
	case wire.DoWorkloadStatus:
		return ask(req, func(b wire.Bins) (wire.Status, error) {
			j, err := a.currentJob()
			if err != nil {
				return wire.Status{}, err
			}
			return j.status(a.clock, b), nil
		})
	case wire.DoWorkloadStop:
		return ask(req, a.stopWorkload)
	case wire.DoWorkloadRate:
		return ask(req, a.setRate)
	case wire.DoWorkloadMark:
		return a.mark()
	case wire.DoWorkloadSpoil:
		return a.spoil()
	case wire.DoClockReset:
		a.beats.looks.reset(a.clock.now())
		return struct{}{}, nil
	case wire.DoClockReport:
		return a.beats.looks.report()
	case wire.DoClockStop:
		a.beats.looks.halt()
		return a.beats.looks.report()
	case wire.DoBeat:
		return ask(req, func(s wire.BeatSet) (wire.BeatReport, error) {
			if s.Interval != nil {
				if *s.Interval < 0 || *s.Interval > 0 && *s.Interval < 100*time.Microsecond {
					return wire.BeatReport{}, errors.New("interval_ns is out of range: 0 (off), or 100 us and more")
				}
				a.beats.set(*s.Interval)
			}
			return a.beats.report(), nil
		})
	case wire.DoDiskStart:
		return ask(req, a.startDisk)
	case wire.DoDiskStatus:
		return ask(req, a.diskStatus)
	case wire.DoDiskStop:
		return ask(req, a.stopDisk)
	case wire.DoDiskRead:
		return ask(req, a.readDisk)
	case wire.DoDiskCorrupt:
		return ask(req, a.corruptDisk)
	case wire.DoPutFile:
		return ask(req, putFile)
	case wire.DoPoweroff:
		return struct{}{}, nil
	}
	return nil, fmt.Errorf("cannot do %.40q: I can %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, "+
		"disk.start, .status, .stop, .read, .corrupt, file.put", req.Do,
		wire.DoHello, wire.DoFill, wire.DoVerify, wire.DoWorkloadStart, wire.DoWorkloadStatus, wire.DoWorkloadStop,
		wire.DoWorkloadRate, wire.DoWorkloadMark, wire.DoWorkloadSpoil, wire.DoClockReset, wire.DoClockReport,
		wire.DoClockStop, wire.DoBeat, wire.DoPoweroff, wire.DoCorrupt)
}

// ask reads a request's arguments, refusing those that do not exist, and calls f with them.
func ask[A, R any](req wire.Request, f func(A) (R, error)) (any, error) {
	var args A
	if len(req.Args) > 0 {
		d := json.NewDecoder(bytes.NewReader(req.Args))
		d.DisallowUnknownFields()
		if err := d.Decode(&args); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read arguments: %w", err)
		}
	}
	return f(args)
}

// leastFill is more than 10,000 pages.
const leastFill = 10_001 * wire.PageSize

// defaultFill is half of the memory.
func (a *agent) defaultFill() int64 {
	total, _ := ram()
	return max(total/2, leastFill) &^ (wire.PageSize - 1)
}

// spare is what a fill leaves free: without memory the kernel would end process 1 and with it the guest.
const spare = 8 << 20

// fillAsked is fill while no workload runs.
func (a *agent) fillAsked(f wire.Fill) (wire.Filled, error) {
	a.work.Lock()
	defer a.work.Unlock()
	if j, err := a.currentJob(); err == nil && j.running() {
		return wire.Filled{}, fmt.Errorf("%s is running: workload.stop comes first", j.w.Name)
	}
	return a.fill(f)
}

func (a *agent) fill(f wire.Fill) (wire.Filled, error) {
	c, err := contentOf(f.Content)
	if err != nil {
		return wire.Filled{}, err
	}
	if f.Bytes == 0 {
		f.Bytes = a.defaultFill()
	}
	if f.Seed == 0 {
		f.Seed = 1
	}
	_, free := ram()
	if most := free + a.mem.size.Load() - spare; f.Bytes < wire.PageSize || f.Bytes > most {
		return wire.Filled{}, fmt.Errorf("fill %d bytes: %d to %d can be filled", f.Bytes, wire.PageSize, most)
	}
	start := a.clock.now()
	if err := a.mem.fill(f.Bytes, c, f.Seed); err != nil {
		return wire.Filled{}, err
	}
	n := a.mem.size.Load()
	return wire.Filled{Bytes: n, Pages: n / wire.PageSize, Duration: a.clock.now() - start}, nil
}

func (a *agent) hello() wire.Hello {
	total, _ := ram()
	h := wire.Hello{
		Protocol: wire.Protocol, Agent: buildID("/proc/self/exe"), Kernel: kernelRelease(), BootID: word("/proc/sys/kernel/random/boot_id"),
		MemoryBytes: total, VCPUs: runtime.NumCPU(), Started: a.started, Region: a.mem.size.Load(),
		Lines: a.port.garbage.Load(), Beats: a.port.dropped.Load(), Notes: a.lost.Load(),
	}
	for _, t := range wire.WorkloadTypes() {
		if t.Guest == "" || a.boot.Root != "" {
			h.Workloads = append(h.Workloads, t.Name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	h.Ready, h.Problems = a.ready, append([]string{}, a.problems...)
	if a.boot.IP.IsValid() {
		h.Address = a.boot.IP.String()
	}
	if a.job != nil && a.job.running() {
		h.Running = a.job.w.String()
	}
	h.Uptime, h.Clock = clockNow(unix.CLOCK_BOOTTIME), a.clock.now()
	return h
}

// note tells the host something as soon as there is one; what no longer fits is counted.
func (a *agent) note(event string, data any) {
	select {
	case a.notes <- encode(wire.Note{Event: event, Data: quote(data)}):
	default:
		a.lost.Add(1)
	}
}

func (a *agent) sendNotes() {
	for line := range a.notes {
		a.port.send(line, true)
	}
}

// quote and encode marshal our own plain structs, which cannot fail.
func quote(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func encode(v any) []byte {
	b, err := wire.Line(v)
	if err != nil {
		panic(err)
	}
	return b
}
