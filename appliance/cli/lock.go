package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) lockCommand() *cobra.Command {
	var until, length, reason string
	c := &cobra.Command{
		Use: "lock POINT --until TIME", Short: "Keep a restore point from being removed until a time", Args: exactly(1, "a point"),
		Long: "Keep a restore point from being removed until a time, by anybody and whatever this machine's clock says. A lock\n" +
			"can be extended, and never shortened or taken back.",
		RunE: func(c *cobra.Command, args []string) error {
			if (until == "") == (length == "") {
				return usage(c.CommandPath(), "say either until when (--until 2027-01-31) or for how long (--for 30d)")
			}
			end, err := a.lockEnd(until, length)
			if err != nil {
				return usage(c.CommandPath(), err.Error())
			}
			return a.lockPoint(c.Context(), args[0], end, reason)
		},
	}
	c.Flags().StringVar(&until, "until", "", "a day (its end, UTC), or a time as in 2027-01-31T12:00:00Z")
	c.Flags().StringVar(&length, "for", "", "from now on: 30d, 2w, 12h")
	c.Flags().StringVar(&reason, "reason", "", "shown to whoever tries to remove it")
	return c
}

// lockEnd reads one of the two ways of saying when a lock ends.
func (a *app) lockEnd(until, length string) (time.Time, error) {
	if length != "" {
		units := map[byte]time.Duration{'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
		n, err := strconv.Atoi(length[:len(length)-1])
		unit := units[length[len(length)-1]]
		if err != nil || n <= 0 || unit == 0 || n > 100*366*24 {
			return time.Time{}, fmt.Errorf("--for %s: a number with h, d or w is needed", length)
		}
		return a.Now().Add(time.Duration(n) * unit), nil
	}
	if day, err := time.Parse(time.DateOnly, until); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	t, err := time.Parse(time.RFC3339, until)
	if err != nil {
		return t, fmt.Errorf("--until %s: neither a day such as 2027-01-31 nor a time such as 2027-01-31T12:00:00Z", until)
	}
	return t, nil
}

func (a *app) lockPoint(ctx context.Context, name string, until time.Time, reason string) error {
	locked := func(id string, until time.Time) error {
		text := until.UTC().Format(time.RFC3339)
		return a.print(map[string]string{"point": id, "locked_until": text}, func(w io.Writer) {
			fmt.Fprintf(w, "Point %s cannot be removed until %s.\n", id, text)
		})
	}
	return a.change(ctx, func(s *chunkstore.Store) error {
		p, err := node.ResolvePoint(ctx, s, name, a.Now())
		if err != nil {
			return err
		}
		l, err := s.LockPoint(ctx, p.ID, until, reason)
		if err != nil {
			return err
		}
		return locked(string(p.ID), l.Until)
	}, func(s api.Service) error {
		p, err := s.LockPoint(ctx, api.LockSpec{Point: name, Until: until, Reason: reason})
		if err != nil {
			return err
		}
		return locked(p.Point, *p.LockedUntil)
	})
}

// withLock adds until when a point is locked. A lock that cannot be read holds, and says so.
func (a *app) withLock(ctx context.Context, r *chunkstore.Reader, p pointJSON) pointJSON {
	l, err := r.PointLock(ctx, chunkstore.PointID(p.Point))
	switch {
	case err == nil:
		p.Locked = l.Until.UTC().Format(time.RFC3339)
	case !errs.Is(err, errs.NotFound):
		p.Locked = "unknown: its lock is damaged"
	}
	return p
}

func (a *app) clockCommand() *cobra.Command {
	var confirm bool
	c := &cobra.Command{
		Use: "clock", Short: "Show what time the store believes, against which locks are held", Args: exactly(0, "no arguments"),
		Long: "Show what time the store believes. It goes on with this machine's boot-time clock, which cannot be set. After the\n" +
			"machine was off for more than a day the store does not know how long that was: locks stay shut until a person\n" +
			"says with --confirm that this machine's clock is right. That is audited.",
		RunE: func(c *cobra.Command, _ []string) error { return a.clock(c.Context(), confirm) },
	}
	c.Flags().BoolVar(&confirm, "confirm", false, "say that this machine's clock is right")
	return c
}

type clockJSON struct {
	Believed string `json:"believed_time,omitempty"`
	Clock    string `json:"clock"`
	Doubtful bool   `json:"clock_doubtful"`
}

func (a *app) clock(ctx context.Context, confirm bool) error {
	show := func(believed, clock time.Time, doubtful bool) error {
		out := clockJSON{Clock: clock.UTC().Format(time.RFC3339), Doubtful: doubtful}
		if !believed.IsZero() {
			out.Believed = believed.UTC().Format(time.RFC3339)
		}
		return a.print(out, func(w io.Writer) {
			if believed.IsZero() && !doubtful {
				fmt.Fprintln(w, "Nothing was ever locked in this store: it keeps no time yet.")
				return
			}
			fmt.Fprintf(w, "Believed\t%s\n", out.Believed)
			fmt.Fprintf(w, "Clock\t%s\n", out.Clock)
			if doubtful {
				fmt.Fprintln(w, "The clock jumped: locks stay shut. If it is right: holdfast store clock --confirm")
			}
		})
	}
	if !confirm {
		r, err := a.reader(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		c, err := r.Clock(ctx)
		if err != nil && !errs.Is(err, errs.Corrupt) {
			return err
		}
		return show(c.Seen, a.Now(), c.Doubtful() || err != nil)
	}
	return a.change(ctx, func(s *chunkstore.Store) error {
		c, err := s.ConfirmClock(ctx)
		if err != nil {
			return err
		}
		return show(c.Seen, a.Now(), false)
	}, func(s api.Service) error {
		i, err := s.ConfirmClock(ctx)
		if err != nil || i.Believed == nil {
			return err
		}
		return show(*i.Believed, i.Clock, i.Doubtful)
	})
}

func (a *app) auditCommand() *cobra.Command {
	return &cobra.Command{
		Use: "audit", Short: "List what was done and refused about locks and the clock, oldest first", Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.audit(c.Context()) },
	}
}

func (a *app) audit(ctx context.Context) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	all, bad := r.Audit(ctx)
	if all == nil {
		all = []chunkstore.AuditEntry{}
	}
	if err := a.print(all, func(w io.Writer) {
		if len(all) == 0 {
			fmt.Fprintln(w, "There is nothing in the audit yet.")
			return
		}
		fmt.Fprintln(w, "TIME\tWHAT\tPOINT\tDETAIL\tWHO")
		for _, e := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", when(e.Time), e.What, dash(e.Point), dash(plain(e.Detail)), plain(e.Who))
		}
	}); err != nil {
		return err
	}
	return a.incomplete(bad)
}
