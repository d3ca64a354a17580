package launch

import (
	"context"
	"os"

	"qmigrate/hostnet/host"
)

// one is a task that gives one answer.
func one[In, Out any](name string, do func(ctx context.Context, at host.Host, in In) (Out, error)) host.Task[In, Out] {
	work := func(ctx context.Context, at host.Host, in In, give func(Out) error) error {
		out, err := do(ctx, at, in)
		if err != nil {
			return err
		}
		return give(out)
	}
	return host.Task[In, Out]{Name: name, Work: work}
}

// Tasks are this package's, for host.Helper: what is asked of a QEMU's process, and of the host that a second one is
// started on, must be asked there.
func Tasks() []host.Served {
	return []host.Served{processTask(), heldTask(), fileTask(), besideTask(), folderTask(), cidTask(), roomTask(),
		oursTask(), lacksTask(), markTask(), seenTask()}
}

// Look looks at a process of a host: see ReadProcess.
func Look(ctx context.Context, at host.Host, pid int) (*Process, error) {
	w, err := processTask().Ask(ctx, at, pid)
	if err != nil {
		return nil, err
	}
	return w.process(), nil
}

// wireProcess is a Process with all that it knows.
type wireProcess struct {
	Process
	ActsAs     wireOwner
	Confined   string
	OtherRoot  bool
	OtherMount bool
	OtherUsers bool
}

type wireOwner struct {
	UID, GID     int
	Several      bool
	Groups       []int
	Has, Can     uint64
	NoPrivileges bool
	Filters      int
}

func (w wireProcess) process() *Process {
	p, o := w.Process, w.ActsAs
	p.owner = owner{o.UID, o.GID, o.Several, o.Groups, o.Has, o.Can, o.NoPrivileges, o.Filters}
	p.label, p.otherRoot, p.otherMounts, p.otherUsers = w.Confined, w.OtherRoot, w.OtherMount, w.OtherUsers
	return &p
}

func processTask() host.Task[int, wireProcess] {
	return one("launch.process", func(_ context.Context, _ host.Host, pid int) (w wireProcess, err error) {
		p, err := ReadProcess(pid)
		if err != nil {
			return w, err
		}
		o := p.owner
		return wireProcess{Process: *p, ActsAs: wireOwner{o.uid, o.gid, o.several, o.groups, o.has, o.can, o.noPrivileges,
			o.filters}, Confined: p.label, OtherRoot: p.otherRoot, OtherMount: p.otherMounts, OtherUsers: p.otherUsers}, nil
	})
}

// HeldBy asks a host what one of its processes holds: see ReadHeld. What it names is looked up there as long as ctx
// lasts.
func HeldBy(ctx context.Context, at host.Host, pid int) (*Held, error) {
	w, err := heldTask().Ask(ctx, at, pid)
	if err != nil {
		return nil, err
	}
	h := &Held{dir: w.Dir, file: func(name string) (fileID, bool) {
		f, err := fileTask().Ask(ctx, at, named{pid, name})
		return fileID{f.Dev, f.Ino}, err == nil && f.There
	}}
	for _, s := range w.Sockets {
		s.Socket.id = fileID{s.Dev, s.Ino}
		h.Sockets = append(h.Sockets, s.Socket)
	}
	for _, f := range w.Files {
		f.File.id = fileID{f.Dev, f.Ino}
		h.Files = append(h.Files, f.File)
	}
	return h, nil
}

// wireHeld is a Held without the way to its files.
type wireHeld struct {
	Dir     string
	Sockets []wireSocket
	Files   []wireFile
}

type wireSocket struct {
	Socket
	Dev, Ino uint64
}

type wireFile struct {
	File
	Dev, Ino uint64
}

func heldTask() host.Task[int, wireHeld] {
	return one("launch.held", func(_ context.Context, _ host.Host, pid int) (w wireHeld, err error) {
		h, err := ReadHeld(pid)
		if err != nil {
			return w, err
		}
		w.Dir = h.dir
		for _, s := range h.Sockets {
			w.Sockets = append(w.Sockets, wireSocket{s, s.id.dev, s.id.ino})
		}
		for _, f := range h.Files {
			w.Files = append(w.Files, wireFile{f, f.id.dev, f.id.ino})
		}
		return w, nil
	})
}

// named is a name that a process has for something.
type named struct {
	PID  int
	Name string
}

type wireFileID struct {
	Dev, Ino uint64
	There    bool
}

func fileTask() host.Task[named, wireFileID] {
	return one("launch.file", func(_ context.Context, _ host.Host, in named) (wireFileID, error) {
		id, there := fileAs(in.PID, in.Name)
		return wireFileID{id.dev, id.ino, there}, nil
	})
}

// beside is what Process.Beside says.
type beside struct {
	Like  *host.Like // nil: a process of ours is like it already
	Among bool
}

// asked is a process as another program is to run beside it.
type asked struct {
	PID     int
	Another bool // another program takes its place, so that its own may have been replaced
}

// Beside is Process.Beside, asked of the process's host; another says that another program is started.
func Beside(ctx context.Context, at host.Host, pid int, another bool) (like *host.Like, among bool, err error) {
	b, err := besideTask().Ask(ctx, at, asked{pid, another})
	return b.Like, b.Among, err
}

func besideTask() host.Task[asked, beside] {
	return one("launch.beside", func(_ context.Context, _ host.Host, in asked) (b beside, err error) {
		p, err := ReadProcess(in.PID)
		if err != nil {
			return b, err
		}
		if in.Another {
			p.Changed = false
		}
		b.Like, b.Among, err = p.Beside()
		return b, err
	})
}

// FolderOf is Process.Folder, asked of the process's host.
func FolderOf(ctx context.Context, at host.Host, pid int, name string) (string, error) {
	return folderTask().Ask(ctx, at, named{pid, name})
}

func folderTask() host.Task[named, string] {
	return one("launch.folder", func(_ context.Context, _ host.Host, in named) (string, error) {
		p, err := ReadProcess(in.PID)
		if err != nil {
			return "", err
		}
		return p.Folder(in.Name)
	})
}

// AskCID asks a host's kernel for a vsock context number: see askCID.
func AskCID(ctx context.Context, at host.Host) func(cid uint64) error {
	return func(cid uint64) error {
		_, err := cidTask().Ask(ctx, at, cid)
		return err
	}
}

func cidTask() host.Task[uint64, struct{}] {
	return one("launch.cid", func(_ context.Context, _ host.Host, cid uint64) (struct{}, error) {
		return struct{}{}, askCID(cid)
	})
}

// Room says why a second guest of this size does not fit on a host: the kernel would kill one of those that are there.
// The destination is started by this program or its helper there, so the limits and the control group are its own.
func Room(ctx context.Context, at host.Host, need Memory) error {
	_, err := roomTask().Ask(ctx, at, need)
	return err
}

func roomTask() host.Task[Memory, struct{}] {
	return one("launch.room", func(_ context.Context, _ host.Host, need Memory) (none struct{}, err error) {
		self, err := ReadProcess(os.Getpid())
		if err != nil {
			return none, err
		}
		return none, room(os.DirFS("/"), need, self.Limits, self.Cgroup)
	})
}

// Ours is what a process that we start on a host has of this program, or of its helper there.
type Ours struct {
	Limits  Limits
	UID     int
	Network uint64 // see Process.Network
}

// AskOurs asks a host for it.
func AskOurs(ctx context.Context, at host.Host) (Ours, error) {
	return oursTask().Ask(ctx, at, struct{}{})
}

func oursTask() host.Task[struct{}, Ours] {
	return one("launch.ours", func(_ context.Context, at host.Host, _ struct{}) (o Ours, err error) {
		self, err := ReadProcess(os.Getpid())
		if err != nil {
			return o, err
		}
		o = Ours{self.Limits, os.Geteuid(), self.Network}
		// Where the host is a network namespace, that is where its processes are.
		err = host.In(at, func() error {
			id, err := statID("/proc/thread-self/ns/net")
			o.Network = id.ino
			return err
		})
		return o, err
	})
}
