// Command holdfast is the command line of Holdfast; see docs/cli.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/cli"
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	stats := make(chan struct{})
	go func() {
		for range usr1 {
			stats <- struct{}{}
		}
	}()
	os.Exit(cli.Run(ctx, cli.World{
		Args: os.Args[1:], Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Now: time.Now, Stats: stats, Version: version,
	}))
}
