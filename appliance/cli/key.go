package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) keyCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List what opens the store", Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.listKeys(c.Context()) },
	}
	var phraseFile, keyFile string
	add := &cobra.Command{
		Use: "add NAME", Short: "Make one more passphrase or key file open the store", Args: exactly(1, "a name for the key"),
		Long: "Make one more passphrase or key file open the store, under a NAME of your choice. Without a flag a passphrase\n" +
			"is asked for, on a terminal. A key file that does not exist is made.",
		RunE: func(c *cobra.Command, args []string) error {
			if phraseFile != "" && keyFile != "" {
				return usage(c.CommandPath(), "--new-passphrase-file and --new-key-file are two keys: add one after the other")
			}
			return a.addKey(c.Context(), args[0], phraseFile, keyFile)
		},
	}
	add.Flags().StringVar(&phraseFile, "new-passphrase-file", "", "file with the passphrase to add in its first line")
	add.Flags().StringVar(&keyFile, "new-key-file", "", "key file to add; made if it does not exist")
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Make a passphrase or key file no longer open the store", Args: exactly(1, "a key's name"),
		Long: "Make a passphrase or key file no longer open the store. The last one is not removed. Whoever has a copy of the\n" +
			"store's keys folder from before can go on opening the store with what was removed.",
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeKeys(c.Context(), args[0], "Removed the key %s: it no longer opens the store.", func(ctx context.Context, r *chunkstore.Reader) error {
				return r.RemoveKey(ctx, args[0])
			})
		},
	}
	return group("key", "Manage what opens the store", list, add, rm)
}

func (a *app) passphraseCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "passphrase [NAME]", Short: "Change the passphrase", Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly(1, "a key's name, or none for the passphrase in use")(c, args)
			}
			return nil
		},
		Long: "Change a passphrase: the one that opened the store, or that of the key NAME. No backup is rewritten, and nothing\n" +
			"else changes. Interrupted at any point, the old one opens the store or the new one does. With --kit a lost\n" +
			"passphrase is replaced. Whoever has a copy of the store's keys folder from before can go on using the old one.",
		RunE: func(c *cobra.Command, args []string) error { return a.changePassphrase(c.Context(), args, file) },
	}
	c.Flags().StringVar(&file, "new-passphrase-file", "", "file with the new passphrase in its first line (default: ask, on a terminal)")
	return c
}

type keyJSON struct {
	Name  string `json:"name"`
	Form  string `json:"form"` // "passphrase" or "key-file"
	Error string `json:"error,omitempty"`
}

func (a *app) listKeys(ctx context.Context) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	out, bad := []keyJSON{}, 0
	for _, k := range list {
		j := keyJSON{Name: k.Name, Form: "passphrase"}
		if k.Form == keys.ByFile {
			j.Form = "key-file"
		}
		if k.Err != nil {
			j.Error = k.Err.Error()
			bad++
		}
		out = append(out, j)
	}
	if err := a.print(out, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tOPENED BY\tSTATE")
		for i, k := range out {
			state := "good"
			if k.Error != "" {
				state = "opens nothing: " + k.Error
			} else if k.Name == r.OpenedBy() {
				state = "in use by this command"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", k.Name, list[i].Form, plain(state))
		}
	}); err != nil {
		return err
	}
	if bad > 0 {
		return &partial{exitPartial, count(int64(bad), "key") + " cannot be used",
			"Put the file back from a copy of the store, or remove it with `holdfast store key rm`."}
	}
	return nil
}

func (a *app) addKey(ctx context.Context, name, phraseFile, keyFile string) error {
	return a.changeKeys(ctx, name, "Added the key %s: it opens the store from now on.", func(ctx context.Context, r *chunkstore.Reader) error {
		if keyFile == "" {
			pass, err := a.newPassphrase(ctx, phraseFile, "--new-passphrase-file", "Passphrase to add: ")
			if err != nil {
				return err
			}
			return r.AddKey(ctx, name, chunkstore.Secret{Passphrase: pass, Work: keys.Work})
		}
		if err := outside(r.Dir(), keyFile, "use key file", "--new-key-file"); err != nil {
			return err
		}
		content, made, err := node.OpenOrMakeKeyFile(keyFile)
		if err != nil {
			return err
		}
		if made {
			a.note("Made the key file " + keyFile + ".")
		}
		return r.AddKey(ctx, name, chunkstore.Secret{KeyFile: content})
	})
}

// changeKeys opens the store, lets f change its keys, and prints what was done to the key.
func (a *app) changeKeys(ctx context.Context, name, done string, f func(context.Context, *chunkstore.Reader) error) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := f(ctx, r); err != nil {
		return err
	}
	return a.print(map[string]string{"key": name}, func(w io.Writer) { fmt.Fprintf(w, done+"\n", name) })
}

func (a *app) changePassphrase(ctx context.Context, args []string, file string) error {
	r, err := a.reader(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	list, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	name, known, err := passphraseToChange(list, r.OpenedBy(), args)
	if err != nil {
		return err
	}
	pass, err := a.newPassphrase(ctx, file, "--new-passphrase-file", "New passphrase: ")
	if err != nil {
		return err
	}
	change := r.ChangeKey
	if !known {
		change = r.AddKey
	}
	if err := change(ctx, name, chunkstore.Secret{Passphrase: pass, Work: keys.Work}); err != nil {
		return err
	}
	return a.print(map[string]string{"key": name}, func(w io.Writer) {
		fmt.Fprintf(w, "The passphrase %s is changed: from now on only the new one opens the store, and the recovery kit as before.\n", name)
		fmt.Fprintln(w, "Where a node or a script reads it from a file, change that file as well.")
	})
}

// passphraseToChange finds the key whose passphrase is meant, and tells whether there is one: where every key is lost,
// or only key files are left, a first passphrase is made.
func passphraseToChange(list []chunkstore.WrappedKey, openedBy string, args []string) (name string, known bool, err error) {
	var names []string
	for _, k := range list {
		switch {
		case len(args) == 1 && k.Name == args[0], len(args) == 0 && k.Form == keys.ByPassphrase && k.Name == openedBy:
			return k.Name, true, nil
		case k.Form == keys.ByPassphrase:
			names = append(names, k.Name)
		}
	}
	switch {
	case len(args) == 1:
		return args[0], true, nil // which says that there is none
	case len(names) > 1:
		return "", false, errs.Text("change passphrase", "", errs.Invalid, fmt.Sprintf("there are several: %q", names)).
			WithNext("Name the one that is meant: `holdfast store passphrase NAME`.")
	case len(names) == 1:
		return names[0], true, nil
	}
	return "master", false, nil
}
