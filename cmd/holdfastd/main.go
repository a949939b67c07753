// Command holdfastd is the Holdfast daemon; see docs/holdfastd.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// version is set by the linker.
var version = "devel"

func main() {
	file := flag.String("config", "/etc/holdfast/holdfastd.yaml", "configuration file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := config.Load(*file)
	if err == nil {
		// Without systemd there is nobody to notify, and that is no error.
		err = node.Run(ctx, c, version, slog.New(slog.NewTextHandler(os.Stderr, nil)), func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "holdfastd: "+err.Error())
		if next := errs.NextStep(err); next != "" {
			fmt.Fprintln(os.Stderr, "  "+next)
		}
		os.Exit(1)
	}
}
