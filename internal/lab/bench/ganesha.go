package bench

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// ganeshaBed is what nfs-ganesha needs around it: a /run of its own, and a portmapper.
type ganeshaBed struct {
	bed     *bed
	config  string
	rpcbind *proc.Process
	mounted bool
}

// ganeshaConfig exports a folder. Nothing is tuned; what is off is what the others do not have either.
const ganeshaConfig = `NFS_CORE_PARAM { Protocols = 3; NFS_Port = 20049; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }
EXPORT { Export_Id = 1; Path = FOLDER; Pseudo = /disk; Access_Type = RO; Protocols = 3; Transports = TCP; Squash = No_Root_Squash; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`

func (b *bed) prepareGanesha(ctx context.Context) (*ganeshaBed, error) {
	if !netns.Inside() {
		return nil, errs.Text("start", ganesha, errs.Bug, "its ports and its /run would be those of the machine")
	}
	g := &ganeshaBed{bed: b, config: b.path("ganesha.conf")}
	folder := b.path("served")
	if err := os.RemoveAll(folder); err != nil {
		return nil, err
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, err
	}
	if err := os.Link(b.file, filepath.Join(folder, "disk.raw")); err != nil {
		return nil, err
	}
	if err := os.WriteFile(g.config, []byte(strings.ReplaceAll(ganeshaConfig, "FOLDER", folder)), 0o600); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, errs.Wrap("mount", "/run", err)
	}
	g.mounted = true
	var err error
	if g.rpcbind, err = proc.Start(ctx, proc.Spec{Args: []string{"rpcbind", "-f", "-w"}}); err == nil {
		err = g.await(ctx, g.rpcbind, func(ctx context.Context) error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:111")
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
	}
	if err != nil {
		_ = g.close()
		return nil, err
	}
	return g, nil
}

// start starts nfs-ganesha and waits until its export can be mounted.
func (g *ganeshaBed) start(ctx context.Context) (*server, error) {
	log := g.bed.path("ganesha.log")
	p, err := proc.Start(ctx, proc.Spec{Args: []string{"ganesha.nfsd", "-F", "-f", g.config, "-L", log, "-p", "/run/ganesha.pid"}})
	if err != nil {
		return nil, err
	}
	at := place{"127.0.0.1:20049", "127.0.0.1:20048", g.bed.path("served"), "disk.raw"}
	if err := g.await(ctx, p, func(ctx context.Context) error {
		c, err := dial(ctx, at)
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		p.Kill()
		return nil, err
	}
	return &server{p, at}, nil
}

// await asks again and again until there is an answer.
func (g *ganeshaBed) await(ctx context.Context, p *proc.Process, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-p.Done():
			return errs.Text("start", ganesha, errs.Transient, "a program ended; it said: "+p.Tail())
		case <-ctx.Done():
			return errs.New("start", ganesha, errs.Transient, err)
		}
	}
}

// close ends the portmapper and takes the mount away.
func (g *ganeshaBed) close() error {
	if g.rpcbind != nil {
		g.rpcbind.Kill() // it keeps nothing
		g.rpcbind = nil
	}
	if !g.mounted {
		return nil
	}
	g.mounted = false
	return errs.Wrap("unmount", "/run", unix.Unmount("/run", unix.MNT_DETACH))
}
