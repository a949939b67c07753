package nfsdomain

import (
	"context"
	"path"
)

// stat is what a server tells about a file.
type stat struct {
	Mode uint64 // type and permissions, as stat(2) has them
	UID  uint64
	GID  uint64
	Size int64
	Used int64 // bytes; what st_blocks is made of
}

const (
	typeMask = 0o170000
	typeDir  = 0o040000
	typeFile = 0o100000
)

func (s stat) dir() bool    { return s.Mode&typeMask == typeDir }
func (s stat) perm() uint64 { return s.Mode & 0o777 }

// files are the operations of a client, with paths from the export's root.
func (c *client) stat(ctx context.Context, file string) (s stat, err error) {
	err = c.call(ctx, request{"op": "stat", "path": rooted(file)}, &s)
	return s, err
}

// names lists a folder.
func (c *client) names(ctx context.Context, dir string) ([]string, error) {
	var answer struct{ Names []string }
	err := c.call(ctx, request{"op": "readdir", "path": rooted(dir)}, &answer)
	return answer.Names, err
}

// read reads up to n bytes at off; it is short only at the end of the file.
func (c *client) read(ctx context.Context, file string, off int64, n int) (p []byte, err error) {
	err = c.call(ctx, request{"op": "read", "path": rooted(file), "offset": off, "count": n}, &p)
	return p, err
}

// write writes durably.
func (c *client) write(ctx context.Context, file string, off int64, p []byte) error {
	return c.call(ctx, request{"op": "write", "path": rooted(file), "offset": off, "data": p}, nil)
}

func (c *client) create(ctx context.Context, file string, mode int, exclusive bool) error {
	return c.call(ctx, request{"op": "create", "path": rooted(file), "mode": mode, "exclusive": exclusive}, nil)
}

func (c *client) truncate(ctx context.Context, file string, size int64) error {
	return c.call(ctx, request{"op": "truncate", "path": rooted(file), "size": size}, nil)
}

func (c *client) rename(ctx context.Context, from, to string) error {
	return c.call(ctx, request{"op": "rename", "path": rooted(from), "to": rooted(to)}, nil)
}

func (c *client) unlink(ctx context.Context, file string) error {
	return c.call(ctx, request{"op": "unlink", "path": rooted(file)}, nil)
}

func (c *client) rmdir(ctx context.Context, dir string) error {
	return c.call(ctx, request{"op": "rmdir", "path": rooted(dir)}, nil)
}

// access asks the server what who may do, as bits of access(2).
func (c *client) access(ctx context.Context, who credentials, file string) (int, error) {
	var answer struct{ Mode int }
	err := c.call(ctx, request{"op": "access", "as": who.name, "path": rooted(file)}, &answer)
	return answer.Mode, err
}

// space returns available and total bytes.
func (c *client) space(ctx context.Context) (available, total int64, err error) {
	var v struct{ Frsize, Blocks, Bavail int64 }
	err = c.call(ctx, request{"op": "statvfs", "path": "/"}, &v)
	return v.Bavail * v.Frsize, v.Blocks * v.Frsize, err
}

// replace gives a file new content as vdsm does: a new file beside it, and a rename over the old one.
func (c *client) replace(ctx context.Context, file string, content []byte) error {
	fresh := file + ".new"
	if err := c.create(ctx, fresh, 0o644, false); err != nil {
		return err
	}
	if err := c.truncate(ctx, fresh, 0); err != nil { // left by one that was cut short
		return err
	}
	if err := c.write(ctx, fresh, 0, content); err != nil {
		return err
	}
	return c.rename(ctx, fresh, file)
}

// remove removes a file, or a folder with all that is in it.
func (c *client) remove(ctx context.Context, file string) error {
	s, err := c.stat(ctx, file)
	if err != nil {
		return err
	}
	if !s.dir() {
		return c.unlink(ctx, file)
	}
	names, err := c.names(ctx, file)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.remove(ctx, path.Join(file, name)); err != nil {
			return err
		}
	}
	return c.rmdir(ctx, file)
}

func rooted(file string) string { return path.Join("/", file) }
