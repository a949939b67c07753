package index

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// logger hands badger's reports to slog. What badger calls information is noise to an administrator.
type logger struct{ log *slog.Logger }

var _ badger.Logger = logger{}

func (l logger) Errorf(format string, a ...any)   { l.print(slog.LevelError, format, a) }
func (l logger) Warningf(format string, a ...any) { l.print(slog.LevelWarn, format, a) }
func (l logger) Infof(format string, a ...any)    { l.print(slog.LevelDebug, format, a) }
func (l logger) Debugf(string, ...any)            {}

func (l logger) print(level slog.Level, format string, a []any) {
	if l.log == nil || !l.log.Enabled(context.Background(), level) {
		return
	}
	l.log.Log(context.Background(), level, "index: badger: "+strings.TrimSpace(fmt.Sprintf(format, a...)))
}
