package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// StreamWatch notes when bytes of a TCP stream came out of the link. A program in the kernel does it, because a copy of
// each frame would cost more than the stream.
type StreamWatch struct {
	socket, times int // descriptors
	last          []time.Time
	closed        bool
}

// streamFrames is how many frames are remembered: the last ones.
const streamFrames = 1024

// WatchStream watches what one host sends to another over TCP, at the receiving host's end of the link. Both are hosts
// of this machine. The kernel may refuse it: then there is no such watch.
func (n *Network) WatchStream(from, to string) (_ *StreamWatch, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("watch the stream from %s to %s: %w", from, to, err)
		}
	}()
	at, src, dst := n.Host(to), n.Address(from), n.Address(to)
	if at == nil || !src.Is4() || !dst.Is4() {
		return nil, errors.New("no such hosts")
	}
	w := &StreamWatch{socket: -1, times: -1}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	// BPF_MAP_TYPE_ARRAY: [0] is how many frames there were, the others are when, in ns of CLOCK_MONOTONIC.
	if w.times, err = bpfCall(unix.BPF_MAP_CREATE, words(unix.BPF_MAP_TYPE_ARRAY, 4, 8, 1+streamFrames)); err != nil {
		return nil, os.NewSyscallError("bpf", err)
	}
	program := streamProgram(w.times, src, dst)
	license := append([]byte("Apache-2.0"), 0)
	var stay runtime.Pinner // the kernel is told where they are
	defer stay.Unpin()
	stay.Pin(&program[0])
	stay.Pin(&license[0])
	load := words(unix.BPF_PROG_TYPE_SOCKET_FILTER, uint32(len(program)/8))
	load = binary.NativeEndian.AppendUint64(load, uint64(uintptr(unsafe.Pointer(&program[0]))))
	load = binary.NativeEndian.AppendUint64(load, uint64(uintptr(unsafe.Pointer(&license[0]))))
	filter, err := bpfCall(unix.BPF_PROG_LOAD, load)
	if err != nil {
		return nil, os.NewSyscallError("bpf", err)
	}
	defer unix.Close(filter)
	return w, host.In(at, func() error {
		d, err := net.InterfaceByName(uplinkName)
		if err != nil {
			return err
		}
		if w.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.SetsockoptInt(w.socket, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, filter); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return os.NewSyscallError("bind", unix.Bind(w.socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: d.Index}))
	})
}

// Last are the instants of the last frames with bytes in them so far, the oldest first, by this machine's clock.
func (w *StreamWatch) Last() []time.Time {
	if w.closed {
		return w.last
	}
	boot, err := bootTime()
	if err != nil {
		return nil
	}
	count := w.read(0)
	for i := range min(count, streamFrames) {
		w.last = append(w.last, boot.Add(time.Duration(w.read(1+uint32((count-1-i)%streamFrames)))))
	}
	slices.Reverse(w.last)
	last := w.last
	w.last = nil
	return last
}

// bootTime is when the kernel's CLOCK_MONOTONIC was 0, by the quickest of some looks at both clocks: this process may
// have to wait between two of them.
func bootTime() (boot time.Time, err error) {
	best := time.Hour
	for range 8 {
		var at unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &at); err != nil {
			return boot, os.NewSyscallError("clock_gettime", err)
		}
		if took := time.Since(before); took < best {
			best, boot = took, before.Add(took/2-time.Duration(at.Nano()))
		}
	}
	return boot, nil
}

// read is a value of the array.
func (w *StreamWatch) read(key uint32) uint64 {
	value := new(uint64)
	var stay runtime.Pinner
	defer stay.Unpin()
	stay.Pin(&key)
	stay.Pin(value)
	look := words(uint32(w.times), 0)
	look = binary.NativeEndian.AppendUint64(look, uint64(uintptr(unsafe.Pointer(&key))))
	look = binary.NativeEndian.AppendUint64(look, uint64(uintptr(unsafe.Pointer(value))))
	if _, err := bpfCall(unix.BPF_MAP_LOOKUP_ELEM, look); err != nil {
		return 0
	}
	return *value
}

// Close ends the watch; Last then says what it said before. It is harmless twice.
func (w *StreamWatch) Close() {
	if w.closed {
		return
	}
	if w.times >= 0 && w.socket >= 0 {
		w.last = w.Last()
	}
	for _, fd := range []int{w.socket, w.times} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	w.closed = true
}

func words(all ...uint32) (b []byte) {
	for _, w := range all {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// bpfCall is bpf(2). Its argument is a union of 128 bytes or more, the rest of which is zero.
func bpfCall(command uintptr, argument []byte) (int, error) {
	union := make([]byte, 128)
	copy(union, argument)
	n, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&union[0])), uintptr(len(union)))
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// Registers and operations of the kernel's machine, 64 bits unless it says otherwise: include/uapi/linux/bpf.h.
const (
	r0, r1, r2, r6, r7, r8, r9, r10 = 0, 1, 2, 6, 7, 8, 9, 10 // r6 is the context, r10 the end of the stack

	ofByte, ofHalf, ofWord = 0x30, 0x28, 0x20 // of the frame, at a place, in the host's order, into r0
	load32, store32        = 0x61, 0x63
	load, store            = 0x79, 0x7b
	set, move              = 0xb7, 0xbf
	add, and, left, right  = 0x07, 0x57, 0x67, 0x77 // by a constant
	element                = 0x18                   // of the next instruction too: a map by its descriptor
	call, exit             = 0x85, 0x95
	ifIs, ifNot            = 0x15, 0x55 // a constant
	ifOther, ifNotMore     = 0x5d, 0xbd // than another register
	lookUp, clock          = 1, 5       // what is called: bpf_map_lookup_elem, bpf_ktime_get_ns
	packetType             = 4          // where it is in the context
	slot                   = -4         // where the number of an element is on the stack
)

// instruction is one of the kernel's machine.
type instruction struct {
	op, to, from byte
	off          int16 // of a jump: toEnd
	value        int32
}

// toEnd is the offset of a jump to the end of the program, wherever that is.
const toEnd = -1

// streamProgram is: of each IPv4 frame that came in, from src to dst, TCP, with bytes in it, note the time. The frame
// itself is never given out.
func streamProgram(times int, src, dst netip.Addr) (b []byte) {
	unlessFrom := func(place int32, a netip.Addr) []instruction {
		v4 := a.As4()
		return []instruction{{op: ofWord, value: place},
			{op: set, to: r1, value: int32(binary.BigEndian.Uint32(v4[:]))}, // which fills all bits with its first
			{op: left, to: r1, value: 32}, {op: right, to: r1, value: 32}, {op: ifOther, to: r0, from: r1, off: toEnd}}
	}
	find := []instruction{ // the element whose number is in the slot, into r0
		{op: move, to: r2, from: r10}, {op: add, to: r2, value: slot}, {op: element, to: r1, from: 1, value: int32(times)},
		{}, {op: call, value: lookUp}, {op: ifIs, to: r0, value: 0, off: toEnd}}
	program := slices.Concat([]instruction{
		{op: move, to: r6, from: r1},
		{op: load32, to: r0, from: r6, off: packetType}, {op: ifIs, to: r0, value: unix.PACKET_OUTGOING, off: toEnd},
		{op: ofHalf, value: 12}, {op: ifNot, to: r0, value: unix.ETH_P_IP, off: toEnd},
		{op: ofByte, value: 14}, {op: ifNot, to: r0, value: 0x45, off: toEnd}, // IPv4 without options
		{op: ofByte, value: 23}, {op: ifNot, to: r0, value: unix.IPPROTO_TCP, off: toEnd},
	}, unlessFrom(26, src), unlessFrom(30, dst), []instruction{
		{op: ofByte, value: 46}, {op: and, to: r0, value: 0xf0}, {op: right, to: r0, value: 2}, // TCP's header
		{op: add, to: r0, value: 20}, {op: move, to: r7, from: r0},
		{op: ofHalf, value: 16}, {op: ifNotMore, to: r0, from: r7, off: toEnd},
		{op: call, value: clock}, {op: move, to: r8, from: r0},
		{op: set, to: r1, value: 0}, {op: store32, to: r10, from: r1, off: slot},
	}, find, []instruction{
		{op: load, to: r9, from: r0}, {op: move, to: r1, from: r9}, {op: add, to: r1, value: 1},
		{op: store, to: r0, from: r1},
		{op: and, to: r9, value: streamFrames - 1}, {op: add, to: r9, value: 1}, {op: store32, to: r10, from: r9, off: slot},
	}, find, []instruction{{op: store, to: r0, from: r8}, {op: set, to: r0, value: 0}, {op: exit}})
	for i, x := range program {
		if x.off == toEnd {
			x.off = int16(len(program) - 2 - (i + 1)) // the last two: return 0
		}
		b = append(b, x.op, x.from<<4|x.to)
		b = binary.NativeEndian.AppendUint16(b, uint16(x.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(x.value))
	}
	return b
}
