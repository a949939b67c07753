// Command holdfast-lab shows Holdfast at work on real disks and real machines, without an oVirt. See internal/lab.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-backup/holdfast/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := lab.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
