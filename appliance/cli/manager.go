package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) managerCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the engines that the node knows", Args: exactly(0, "no arguments"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, _ []string) error { return a.listManagers(c.Context(), s) }),
	}
	show := &cobra.Command{
		Use: "show NAME", Short: "Log in to an engine and show what it says of itself",
		Args: exactly(1, "the manager's name"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
			m, err := s.GetManager(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) { a.managerTable(w, m) })
		}),
	}
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Forget an engine and its password; nothing changes on the engine",
		Args: exactly(1, "the manager's name"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
			if err := s.RemoveManager(c.Context(), args[0]); err != nil {
				return err
			}
			return a.print(map[string]string{"manager": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "Removed manager %s. Restore points of its VMs are still there.\n", plain(args[0]))
			})
		}),
	}
	return group("manager", "Work with the oVirt engines that the node knows", a.addManagerCommand(), list, show, rm)
}

func (a *app) listManagers(ctx context.Context, s api.Service) error {
	list, err := s.ListManagers(ctx)
	var bad []error
	if err != nil {
		if len(list) == 0 {
			return err
		}
		bad = append(bad, err)
	}
	if list == nil {
		list = []appliance.Manager{}
	}
	if err := a.print(list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintln(w, "The node knows no engine yet. Add one with:")
			fmt.Fprintln(w, "  holdfast manager add NAME --url URL --user USER@DOMAIN --password-file F")
			return
		}
		fmt.Fprintln(w, "NAME\tURL\tUSER\tVERSION\tADDED")
		for _, m := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", plain(m.Name), plain(m.URL), plain(m.User), dash(m.Version), a.local(m.Added))
		}
	}); err != nil {
		return err
	}
	return a.incomplete(bad)
}

func (a *app) managerTable(w io.Writer, m appliance.Manager) {
	fmt.Fprintf(w, "Manager\t%s\n", plain(m.Name))
	fmt.Fprintf(w, "URL\t%s\n", plain(m.URL))
	fmt.Fprintf(w, "User\t%s\n", plain(m.User))
	fmt.Fprintf(w, "Version\t%s\n", dash(m.Version))
	fmt.Fprintf(w, "Added\t%s\n", a.local(m.Added))
	fmt.Fprintf(w, "Authority's SHA-256\t%s\n", dash(m.Fingerprint))
}

// newManager is what `manager add` was given.
type newManager struct {
	api.ManagerSpec
	passwordFile, caFile string
}

func (a *app) addManagerCommand() *cobra.Command {
	var m newManager
	c := &cobra.Command{
		Use: "add NAME --url URL --user USER@DOMAIN --password-file F", Short: "Make an oVirt engine known to the node",
		Long: "Make an oVirt engine known to the node, under a NAME of your choice. The node logs in at once and keeps the\n" +
			"password sealed. The engine must be the right one: name its certificate authority with --ca-file, or run the\n" +
			"command without it first: it shows the authority's fingerprint, and the command that accepts it.",
		Args: exactly(1, "a name for the manager"),
		RunE: a.withNode(func(c *cobra.Command, s api.Service, args []string) error {
			m.Name = args[0]
			return a.addManager(c.Context(), c.CommandPath(), s, m)
		}),
	}
	f := c.Flags()
	f.StringVar(&m.URL, "url", "", "the engine: engine.example.com, or https://engine.example.com/ovirt-engine/api")
	f.StringVar(&m.User, "user", "", "user@domain: admin@internal; admin@ovirt@internalsso where Keycloak is in use")
	f.StringVar(&m.passwordFile, "password-file", "", "file that holds the password, and nothing else (default: ask, on a terminal)")
	f.StringVar(&m.caFile, "ca-file", "", "file with the engine's certificate authority, in PEM form")
	f.StringVar(&m.Fingerprint, "accept-fingerprint", "", "SHA-256 that the engine's certificate authority must have")
	return c
}

func (a *app) addManager(ctx context.Context, command string, s api.Service, m newManager) error {
	switch {
	case m.URL == "":
		return usage(command, "no engine was named: use --url URL")
	case m.User == "":
		return usage(command, "no user was named: use --user USER@DOMAIN")
	case m.caFile != "" && m.Fingerprint != "":
		return usage(command, "--ca-file and --accept-fingerprint both say whom to trust: use one of them")
	case m.Fingerprint != "" && sha256Hex.FindString(m.Fingerprint) != m.Fingerprint:
		return usage(command, "--accept-fingerprint "+m.Fingerprint+": a SHA-256 has 64 hexadecimal digits; without the flag the command shows it")
	}
	if m.caFile != "" {
		pem, err := readSmall("read certificate authority", m.caFile)
		if err != nil {
			return err
		}
		if !bytes.Contains(pem, []byte("-----BEGIN CERTIFICATE-----")) {
			return errs.Text("read certificate authority", m.caFile, errs.Invalid, "there is no certificate in PEM form in it").
				WithNext("Name a copy of the engine's own: on its machine it is /etc/pki/ovirt-engine/ca.pem.")
		}
		m.CA = string(pem)
	}
	var err error
	if m.Password, err = a.password(ctx, m); err != nil {
		return err
	}
	added, err := s.AddManager(ctx, m.ManagerSpec)
	if err != nil {
		return a.unconfirmed(m, err)
	}
	return a.print(added, func(w io.Writer) { a.managerTable(w, added) })
}

// sha256Hex finds a SHA-256 in hexadecimal, with or without colons.
var sha256Hex = regexp.MustCompile(`\b[0-9A-Fa-f]{2}(?::?[0-9A-Fa-f]{2}){31}\b`)

// unconfirmed explains a refusal that asks for a fingerprint to be confirmed, and shows the command that does it. The
// node's answer shows the fingerprint (api.ManagerSpec promises that); an answer without one is shown as it is.
func (a *app) unconfirmed(m newManager, err error) error {
	found := sha256Hex.FindString(err.Error())
	if !errs.Is(err, errs.Denied) || m.CA != "" || m.Fingerprint != "" || found == "" {
		return err
	}
	words := []string{"manager", "add", m.Name, "--url", m.URL, "--user", m.User}
	if m.passwordFile != "" {
		words = append(words, "--password-file", m.passwordFile)
	}
	again := a.commandLine(append(words, "--accept-fingerprint", found)...)
	a.note("The node does not know yet whether this engine is yours. The SHA-256 of its certificate authority:")
	a.note("  " + found)
	a.note("On the engine's own machine, this shows the right one (case and colons do not matter):")
	a.note("  openssl x509 -in /etc/pki/ovirt-engine/ca.pem -noout -fingerprint -sha256")
	a.note("If the two are the same, add the engine with:")
	a.note("  " + again)
	const why = "the engine's fingerprint has to be confirmed first; nothing was added"
	return errs.Text("add manager", m.Name, errs.Denied, why).
		WithNext("Compare the fingerprints as shown above. If they differ, do not go on: somebody may stand between.")
}

// password reads the engine's password from its file, or asks for it on a terminal.
func (a *app) password(ctx context.Context, m newManager) (string, error) {
	const op = "read password"
	if m.passwordFile == "" {
		if a.Stdin == nil || !term.IsTerminal(int(a.Stdin.Fd())) {
			return "", errs.Text(op, "", errs.Invalid, "there is no terminal to ask on").
				WithNext("Name a file that holds it: --password-file F.")
		}
		p, err := a.ask(ctx, op, "Password of "+m.User+": ")
		if err == nil && len(p) == 0 {
			err = errs.Text(op, "", errs.Invalid, "it is empty").WithNext("Run the same command again.")
		}
		return string(p), err
	}
	if info, err := os.Stat(m.passwordFile); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		a.note(fmt.Sprintf("Warning: other users may read %s (its mode is %04o). Make it yours alone: chmod 600 %s",
			plain(m.passwordFile), info.Mode().Perm(), quote(m.passwordFile)))
	}
	p, err := readSmall(op, m.passwordFile)
	if err != nil {
		return "", err
	}
	if line, ended := bytes.CutSuffix(p, []byte("\n")); ended {
		p = bytes.TrimSuffix(line, []byte("\r"))
	}
	switch {
	case len(p) == 0:
		return "", errs.Text(op, m.passwordFile, errs.Invalid, "the file is empty").
			WithNext("Write the password into it, and nothing else.")
	case bytes.ContainsAny(p, "\n\x00"):
		return "", errs.Text(op, m.passwordFile, errs.Invalid, "the file holds more than one line").
			WithNext("Leave the password in it, and nothing else.")
	}
	return string(p), nil
}

// maxSmall bounds what is read of passwords and certificates, in bytes.
const maxSmall = 256 << 10

// readSmall reads a file named on the command line, a pipe too.
func readSmall(op, file string) ([]byte, error) {
	next := "Check the name: it is a file on this machine, not on the node."
	f, err := os.Open(file)
	if err != nil {
		kind := errs.KindOf(err)
		if kind != errs.NotFound {
			next = "Correct owner and mode of the file, or run the command as a user who may read it."
		}
		if pe, ok := err.(*fs.PathError); ok {
			err = pe.Err // the subject names the file
		}
		return nil, errs.New(op, file, kind, err).WithNext(next)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	if len(b) > maxSmall {
		return nil, errs.Text(op, file, errs.Invalid, "the file is too large to be that").WithNext(next)
	}
	return b, nil
}
