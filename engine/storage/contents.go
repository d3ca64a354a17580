package storage

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// Images lie on the host whose QEMU has them: what makes and reads them is work on that host.

// Tasks are that work, for the helper.
func Tasks() []host.Served { return []host.Served{createTask(), contentsTask(), directTask()} }

// Creation is an image that is to be.
type Creation struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	Size   int64  `json:"size"`
	Fill   *int64 `json:"fill,omitempty"` // from where on a raw image is filled; nil: it stays empty
}

// CreateOn makes an image on a host.
func CreateOn(ctx context.Context, at host.Host, c Creation) error {
	_, err := createTask().Ask(ctx, at, c)
	return err
}

func createTask() host.Task[Creation, struct{}] {
	return host.Task[Creation, struct{}]{Name: "storage.create",
		Work: func(_ context.Context, _ host.Host, c Creation, give func(struct{}) error) error {
			err := Create(c.Path, c.Format, c.Size)
			if err == nil && c.Fill != nil {
				err = Fill(c.Path, *c.Fill, c.Size)
			}
			if err != nil {
				return err
			}
			return give(struct{}{})
		}}
}

// Direct tells whether a file of a host can be read past the page cache (O_DIRECT); an error says why not.
func Direct(ctx context.Context, at host.Host, path string) error {
	_, err := directTask().Ask(ctx, at, path)
	return err
}

func directTask() host.Task[string, struct{}] {
	return host.Task[string, struct{}]{Name: "storage.direct",
		Work: func(_ context.Context, _ host.Host, path string, give func(struct{}) error) error {
			f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				return errors.Unwrap(err)
			}
			f.Close()
			return give(struct{}{})
		}}
}

// Contents are what is in an image, block by block, as far as two images are compared by it.
type Contents struct {
	Size   int64
	blocks []block
}

// block is one of wire.BlockSize bytes.
type block struct {
	number int64  // what wire.BlockNumber says of it
	sum    uint64 // of its bytes: the begin of their SHA-256
}

// imageFile is an image that is read.
type imageFile struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	Seed   uint64 `json:"seed"` // of the guest's writer
}

// contentsPart is some of the contents, in their order.
type contentsPart struct {
	Size   int64  `json:"size"`
	Blocks []byte `json:"blocks"` // 16 bytes each
}

// ContentsOn reads an image on a host, as the file stands: whoever writes must have flushed.
func ContentsOn(ctx context.Context, at host.Host, path, format string, seed uint64) (*Contents, error) {
	c := &Contents{}
	err := contentsTask().Run(ctx, at, imageFile{path, format, seed}, func(p contentsPart) error {
		c.Size = p.Size
		for b := p.Blocks; len(b) >= 16; b = b[16:] {
			c.blocks = append(c.blocks, block{int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint64(b[8:])})
		}
		return nil
	})
	if want := (c.Size + wire.BlockSize - 1) / wire.BlockSize; err == nil && int64(len(c.blocks)) != want {
		err = fmt.Errorf("read image %s: %d blocks came of %d", path, len(c.blocks), want)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func contentsTask() host.Task[imageFile, contentsPart] {
	return host.Task[imageFile, contentsPart]{Name: "storage.contents",
		Work: func(ctx context.Context, _ host.Host, f imageFile, give func(contentsPart) error) (err error) {
			img, err := Open(f.Path, f.Format)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, img.Close()) }()
			const at = 256 * wire.BlockSize
			b, scratch := make([]byte, at), make([]byte, wire.BlockSize)
			p := contentsPart{Size: img.Size()}
			for off := int64(0); off < p.Size; off += at {
				if err := ctx.Err(); err != nil {
					return err
				}
				n := min(at, p.Size-off)
				if _, err := img.ReadAt(b[:n], off); err != nil {
					return fmt.Errorf("read image %s: %w", f.Path, err)
				}
				for i := int64(0); i < n; i += wire.BlockSize {
					x := b[i:min(i+wire.BlockSize, n)]
					number := int64(-1) // the last block may be short, and holds no record then
					if len(x) == wire.BlockSize {
						number = wire.BlockNumber(x, f.Seed, uint64((off+i)/wire.BlockSize), scratch)
					}
					sum := sha256.Sum256(x)
					p.Blocks = append(binary.BigEndian.AppendUint64(p.Blocks, uint64(number)), sum[:8]...)
				}
				if len(p.Blocks) >= 64<<10 || off+n == p.Size {
					if err := give(p); err != nil {
						return err
					}
					p.Blocks = nil
				}
			}
			return nil
		}}
}

// Numbers are what wire.BlockNumber says of each of the first blocks.
func (c *Contents) Numbers(blocks int64) ([]int64, error) {
	if blocks > int64(len(c.blocks)) {
		return nil, fmt.Errorf("the image has %d blocks, fewer than %d", len(c.blocks), blocks)
	}
	out := make([]int64, blocks)
	for i := range out {
		out[i] = c.blocks[i].number
	}
	return out, nil
}

// Identical tells whether a copy is its original: every byte is the same, but for blocks of the guest's area that hold
// a later record of the guest's writer in the copy, which has run on since. differ counts the blocks that are neither.
func Identical(original, copy *Contents, area int64) (differ int64, err error) {
	if original.Size != copy.Size {
		return 0, fmt.Errorf("the original has %d bytes and the copy %d", original.Size, copy.Size)
	}
	for i, a := range original.blocks {
		b := copy.blocks[i]
		later := int64(i)*wire.BlockSize < area && a.number >= 0 && b.number > a.number
		if a.sum != b.sum && !later {
			differ++
		}
	}
	return differ, nil
}
