package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/server"
	"github.com/opaquevault/ov/pkg/store"
	"github.com/opaquevault/ov/pkg/store/embedded"
	"github.com/opaquevault/ov/pkg/store/postgres"
)

const (
	databaseVariable   = "OV_SERVER_DATABASE_URL"
	databaseCredential = "database-url" // of systemd.exec(5), LoadCredential=
)

// database says where PostgreSQL is, if the server keeps its records there.
type database struct{ url, file string }

func (d *database) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.url, "database-url", "", "PostgreSQL, as in postgres://ov@db1,db2/ov, without a password (default: the embedded storage)")
	f.StringVar(&d.file, "database-url-file", "", "file that holds such a URL, with a password or without")
	cmd.MarkFlagsMutuallyExclusive("database-url", "database-url-file")
}

// find returns the URL that is meant, or "": of the flags, else of the
// environment, else of the credential that systemd has put there.
func (d *database) find() (string, error) {
	if d.url != "" {
		if hasPassword(d.url) {
			return "", command.Usage(hint.Errorf("write the URL into a file, chmod 600 it, and use --database-url-file FILE, or set "+databaseVariable,
				"--database-url has a password in it, which every user of this machine can see"))
		}
		return d.url, nil
	}
	file := d.file
	if file == "" {
		if env := os.Getenv(databaseVariable); env != "" {
			return env, nil
		}
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", nil
		}
		file = filepath.Join(dir, databaseCredential)
	}
	b, err := server.ReadPrivate(file)
	if d.file == "" && errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer clear(b)
	dsn := strings.TrimSpace(string(b))
	if dsn == "" || strings.ContainsAny(dsn, "\r\n") {
		return "", fmt.Errorf("%s does not hold one line", safefile.Quote(file))
	}
	return dsn, nil
}

// passwordParameter is one in a keyword/value string, or in the query of a URL.
var passwordParameter = regexp.MustCompile(`(?i)(^|[\s?&])(ssl)?password\s*=`)

// hasPassword errs on the side of finding one.
func hasPassword(dsn string) bool {
	if _, rest, ok := strings.Cut(dsn, "://"); ok {
		authority, _, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(authority, '@'); at >= 0 && strings.Contains(authority[:at], ":") {
			return true
		}
		if _, query, ok := strings.Cut(rest, "?"); ok {
			if q, err := url.QueryUnescape(query); err != nil || passwordParameter.MatchString("?"+q) {
				return true
			}
		}
	}
	return passwordParameter.MatchString(dsn)
}

// opener returns what opens the storage in dir or at the URL.
func opener(dir, dsn string) func(context.Context) (store.Accounts, error) {
	return func(ctx context.Context) (store.Accounts, error) {
		if dsn != "" {
			return postgres.Open(ctx, dsn)
		}
		return embedded.Open(ctx, dir)
	}
}

// become gives up root for the account that the data directory belongs to, so
// that what is written there is that account's, and that nothing it may have
// prepared there works on files of root's.
func become(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	gid := int(owner.Gid)
	if err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(int(owner.Uid))); err != nil {
		return fmt.Errorf("cannot act as the owner of %s: %w", safefile.Quote(dir), err)
	}
	return nil
}
