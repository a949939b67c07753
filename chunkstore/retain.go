package chunkstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/retention"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Names of the objects of retention; docs/format/retention.md. These never change.
const (
	clockName   = "clock"
	lockPrefix  = "locks/"
	auditPrefix = "audit/"
)

// LockPoint locks a point until a time: it cannot be removed before. A lock is only ever extended: an earlier time is
// errs.Denied, and the same one changes nothing. The lock is durable on return.
func (s *Store) LockPoint(ctx context.Context, id PointID, until time.Time, reason string) (retention.Lock, error) {
	const op = "lock point"
	s.retain.Lock()
	defer s.retain.Unlock()
	var none retention.Lock
	if _, err := s.Point(ctx, id); err != nil {
		return none, err
	}
	clock, err := s.believe(ctx)
	if err != nil {
		return none, errs.Wrap(op, string(id), err)
	}
	if !until.After(clock.Seen) {
		return none, errs.Text(op, string(id), errs.Invalid, "the time is not in the future: by the store's clock it is "+clock.Seen.Format(time.RFC3339))
	}
	old, err := s.PointLock(ctx, id)
	switch {
	case err == nil && until.Equal(old.Until):
		return old, nil
	case err == nil && until.Before(old.Until):
		return old, errs.Text(op, string(id), errs.Denied, "it is locked until "+old.Until.Format(time.RFC3339)+", and a lock cannot be shortened")
	case err != nil && !errs.Is(err, errs.NotFound):
		return none, errs.Wrap(op, string(id), err)
	}
	l := retention.Lock{Point: string(id), Until: until.UTC(), Set: clock.Seen, Reason: reason}
	if err := s.audit(ctx, clock, "lock point", id, "until "+l.Until.Format(time.RFC3339)+": "+reason); err != nil {
		return none, errs.Wrap(op, string(id), err)
	}
	return l, errs.Wrap(op, string(id), s.keepSmall(ctx, lockPrefix+string(id), l))
}

// PointLock returns the lock of a point: errs.NotFound if it has none. A lock that cannot be read is errs.Corrupt, and
// counts as one that holds.
func (r *Reader) PointLock(ctx context.Context, id PointID) (retention.Lock, error) {
	var l retention.Lock
	err := r.readSmall(ctx, lockPrefix+string(id), &l)
	if err == nil && l.Point != string(id) {
		err = errs.Text("read lock", string(id), errs.Corrupt, "it is that of point "+l.Point)
	}
	return l, err
}

// Clock returns the time that the store believes, as it was last kept.
func (r *Reader) Clock(ctx context.Context) (retention.Clock, error) {
	var c retention.Clock
	err := r.readSmall(ctx, clockName, &c)
	if errs.Is(err, errs.NotFound) {
		err = nil
	}
	return c, err
}

// SeeClock looks at the machine's clocks and keeps what the store believes from now on. A process that has the store
// open for long calls it now and then, hourly for instance: what passes while nobody looks is a jump over a stop.
func (s *Store) SeeClock(ctx context.Context) (retention.Clock, error) {
	s.retain.Lock()
	defer s.retain.Unlock()
	return s.believe(ctx)
}

// lookAtClock moves the clock on when the store is opened, if anything was ever locked in it.
func (s *Store) lookAtClock(ctx context.Context) {
	c, err := s.Clock(ctx)
	if err == nil && c.Seen.IsZero() {
		return
	}
	if err == nil {
		_, err = s.SeeClock(ctx)
	}
	if err != nil {
		s.log.Error("the store's clock cannot be kept: locks stay shut until it can", "err", err)
	}
}

// ConfirmClock makes the store believe the wall clock, because a person says that it is right. It is audited.
func (s *Store) ConfirmClock(ctx context.Context) (retention.Clock, error) {
	const op = "confirm clock"
	s.retain.Lock()
	defer s.retain.Unlock()
	old, err := s.believe(ctx)
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return old, errs.Wrap(op, "", err)
	}
	r, err := s.readClocks()
	if err != nil {
		return old, errs.Wrap(op, "", err)
	}
	c := old.Confirmed(r)
	detail := fmt.Sprintf("believed %s, now %s", old.Seen.Format(time.RFC3339), c.Seen.Format(time.RFC3339))
	if err := s.audit(ctx, old, op, "", detail); err != nil {
		return old, errs.Wrap(op, "", err)
	}
	return c, errs.Wrap(op, "", s.keepSmall(ctx, clockName, c))
}

// believe moves the store's clock on. s.retain is held.
func (s *Store) believe(ctx context.Context) (retention.Clock, error) {
	c, err := s.Clock(ctx)
	if err != nil {
		return c, err
	}
	r, err := s.readClocks()
	if err != nil {
		return c, err
	}
	next := c.Next(r)
	if next.Doubtful() && !c.Doubtful() {
		s.log.Warn("the clock jumped: locks stay as they are until a person confirms it", "believed", next.Seen, "clock", r.Wall)
		if err := s.audit(ctx, next, "clock jumped", "", "by "+next.Doubt.Round(time.Second).String()); err != nil {
			return next, err
		}
	}
	return next, s.keepSmall(ctx, clockName, next)
}

// mayRemove tells whether a point's lock, if it has one, is over. s.retain is held.
func (s *Store) mayRemove(ctx context.Context, id PointID) error {
	l, err := s.PointLock(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return shut("look at lock of", string(id), err, "Put its file back from a copy of the store.")
	}
	clock, err := s.believe(ctx)
	if err != nil {
		return shut("look at clock for lock of", string(id), err, "If this machine's clock is right: holdfast store clock --confirm")
	}
	if !l.Holds(clock.Seen) {
		return nil
	}
	why := "it is locked until " + l.Until.Format(time.RFC3339)
	if l.Reason != "" {
		why += " (" + l.Reason + ")"
	}
	if err := s.audit(ctx, clock, "refused to remove locked point", id, ""); err != nil {
		s.log.Error("a refusal could not be audited", "point", string(id), "err", err)
	}
	refusal := errs.Text("remove point", string(id), errs.Denied, why)
	if clock.Doubtful() && !l.Holds(clock.Seen.Add(clock.Doubt)) {
		return refusal.WithNext("By this machine's clock the lock is over, but that clock jumped. If it is right: holdfast store clock --confirm")
	}
	return refusal.WithNext("Wait until then. Nothing can shorten a lock.")
}

// shut is why a lock holds that cannot be looked at.
func shut(op, subject string, err error, next string) error {
	if errs.Is(err, errs.Corrupt) {
		return errs.New(op, subject, errs.Corrupt, err).WithNext("What cannot be read counts as a lock that holds. " + next)
	}
	return errs.Wrap(op, subject, err)
}

// AuditEntry is something that was done or refused, and must be known later. Its JSON is a stored format.
type AuditEntry struct {
	Time     time.Time `json:"time"`     // by the machine's clock
	Believed time.Time `json:"believed"` // by the store's
	What     string    `json:"what"`
	Point    string    `json:"point,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Who      string    `json:"who"` // user and program
}

// Audit returns all entries, oldest first. One that cannot be read is reported beside the others.
func (r *Reader) Audit(ctx context.Context) ([]AuditEntry, []error) {
	infos, err := r.b.List(ctx, auditPrefix)
	if err != nil {
		return nil, []error{errs.Wrap("list audit", r.dir, err)}
	}
	var all []AuditEntry
	var bad []error
	for _, i := range infos {
		var e AuditEntry
		if err := r.readSmall(ctx, i.Name, &e); err != nil {
			bad = append(bad, err)
			continue
		}
		all = append(all, e)
	}
	return all, bad
}

// audit writes an entry down, durably, before what it tells of is done.
func (s *Store) audit(ctx context.Context, clock retention.Clock, what string, id PointID, detail string) error {
	now := time.Now().UTC()
	e := AuditEntry{Time: now, Believed: clock.Seen, What: what, Point: string(id), Detail: strings.TrimSuffix(detail, ": "), Who: who()}
	var suffix [4]byte
	_, _ = rand.Read(suffix[:]) // never fails (crypto/rand)
	name := auditPrefix + now.Format("20060102t150405.000000000z") + "-" + hex.EncodeToString(suffix[:])
	b, err := s.sealSmall(name, e)
	if err != nil {
		return err
	}
	return s.b.Put(ctx, name, b)
}

func who() string {
	name := fmt.Sprint("uid ", os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("%s, %s (process %d)", name, path.Base(os.Args[0]), os.Getpid())
}

// The layout of small sealed objects.
const (
	smallMagic   = "HFSM"
	smallVersion = 1
	smallHeader  = 20 // magic 4, version 2, reserved 2, nonce 12
	smallMax     = 64 << 10
)

// sealSmall encrypts a document. Its name is authenticated with it, so that objects cannot be exchanged.
func (r *Reader) sealSmall(name string, doc any) ([]byte, error) {
	plain, err := json.Marshal(doc)
	if err != nil {
		return nil, errs.New("encode", name, errs.Bug, err)
	}
	head := make([]byte, smallHeader, smallHeader+len(plain)+16)
	copy(head, smallMagic)
	binary.LittleEndian.PutUint16(head[4:], smallVersion)
	_, _ = rand.Read(head[8:smallHeader]) // never fails (crypto/rand)
	return pointCipher(r.key.PointKey()).Seal(head, head[8:smallHeader], plain, append([]byte(name), head[:8]...)), nil
}

func (r *Reader) readSmall(ctx context.Context, name string, into any) error {
	b, err := readObject(ctx, r.b, name, smallMax)
	if err != nil {
		return err
	}
	corrupt := func(why string) error { return errs.Text("read", name, errs.Corrupt, why) }
	if len(b) < smallHeader || string(b[:4]) != smallMagic {
		return corrupt("this is not an object of that kind")
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != smallVersion {
		return errs.Text("read", name, errs.Unsupported, fmt.Sprintf("version %d", v)).WithNext("It was written by a newer Holdfast: use that one.")
	}
	plain, err := pointCipher(r.key.PointKey()).Open(nil, b[8:smallHeader], b[smallHeader:], append([]byte(name), b[:8]...))
	if err != nil {
		return corrupt("it is damaged")
	}
	if err := json.Unmarshal(plain, into); err != nil {
		return corrupt("it cannot be parsed")
	}
	return nil
}

// keepSmall writes a document that may change, durably and all at once.
func (r *Reader) keepSmall(ctx context.Context, name string, doc any) error {
	b, err := r.sealSmall(name, doc)
	if err != nil {
		return err
	}
	re, ok := r.b.(backend.Replacer)
	if !ok {
		return errs.Text("write", name, errs.Unsupported, "this kind of store cannot change objects")
	}
	return re.Replace(ctx, name, b)
}
