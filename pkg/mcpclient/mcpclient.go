// Package mcpclient writes the entry of `ov mcp serve` into the configuration
// files of MCP clients, and takes it out again.
//
// These files are their users' and their clients': they hold other servers,
// often with tokens, and settings that have nothing to do with either. So all
// that is there stays as it is, byte for byte: order, comments, indentation,
// line ends. A file that is not understood is an error that names the line, and
// is left alone. No text of other entries gets into an error or a Result.
//
// A file is replaced in one step (a new one beside it, synced, renamed) and
// keeps its owner and mode. Access control lists and extended attributes are
// not kept.
package mcpclient

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
	"github.com/opaquevault/ov/pkg/xdg"
)

// DefaultName is what the server is called in a client unless told otherwise.
const DefaultName = "opaquevault"

// maxName bounds a server's name, in bytes. Clients call a tool by server and
// tool, such as mcp__opaquevault__vault_secret_exists, in at most 64.
const maxName = 32

// Scope is whose file it is.
type Scope string

// User is one person's file for all projects, Project one that is kept with the
// code and shared.
const (
	User    Scope = "user"
	Project Scope = "project"
)

// Client is a program that starts MCP servers.
type Client struct {
	Name  string // as --client has it
	Title string // as people know it
	Next  string // what makes it read its file: "restart Cursor"

	key     string // of the object that holds the servers
	jsonc   bool   // it reads comments and trailing commas
	project string // file below the project's root, "" if there is none
	user    func(goos string) (place, error)
}

// place is where a client's file is.
type place struct {
	file string // absolute
	home string // folder that is there once the client has run; "" if unknown
}

// clients are the known ones. Sources: code.claude.com/docs/en/mcp, and Claude
// Code 2.1 itself for the order of its files; modelcontextprotocol.io/docs/develop/connect-local-servers;
// cursor.com/docs/mcp; code.visualstudio.com/docs/agents/reference/mcp-configuration.
var clients = []*Client{
	{
		Name: "claude-code", Title: "Claude Code", Next: "restart Claude Code",
		key: "mcpServers", project: ".mcp.json", user: claudeCode,
	},
	{
		Name: "claude-desktop", Title: "Claude Desktop", Next: "quit Claude Desktop and open it again",
		key: "mcpServers", user: func(goos string) (place, error) {
			return below(applicationData, goos, "Claude", "claude_desktop_config.json")
		},
	},
	{
		Name: "cursor", Title: "Cursor", Next: "restart Cursor",
		key: "mcpServers", jsonc: true, project: ".cursor/mcp.json", user: func(goos string) (place, error) {
			return below(home, goos, ".cursor", "mcp.json")
		},
	},
	{
		Name: "vscode", Title: "VS Code", Next: `restart VS Code, or start the server there with "MCP: List Servers"`,
		key: "servers", jsonc: true, project: ".vscode/mcp.json", user: func(goos string) (place, error) {
			return below(applicationData, goos, "Code", "User/mcp.json")
		},
	},
}

// Names returns the names of the known clients.
func Names() []string {
	var list []string
	for _, c := range clients {
		list = append(list, c.Name)
	}
	return list
}

// Find returns the client of that name.
func Find(name string) (*Client, error) {
	for _, c := range clients {
		if c.Name == name {
			return c, nil
		}
	}
	return nil, hint.Errorf("the clients are: "+strings.Join(Names(), ", "), "unknown client %.40q", name)
}

func home(string) (string, error) { return xdg.Home() }

// applicationData is where programs made with Electron have their files.
func applicationData(goos string) (string, error) {
	if goos == "darwin" {
		dir, err := xdg.Home()
		return filepath.Join(dir, "Library/Application Support"), err
	}
	dir, err := xdg.Config("")
	return filepath.Dir(dir), err
}

func below(base func(string) (string, error), goos, folder, file string) (place, error) {
	dir, err := base(goos)
	dir = filepath.Join(dir, folder)
	return place{file: filepath.Join(dir, file), home: dir}, err
}

// claudeCode is ~/.claude.json, or .claude.json in $CLAUDE_CONFIG_DIR. The file
// of its first releases comes before either where there still is one.
func claudeCode(string) (place, error) {
	dir, err := xdg.Home()
	if err != nil {
		return place{}, err
	}
	p := place{file: filepath.Join(dir, ".claude.json"), home: filepath.Join(dir, ".claude")}
	if own := os.Getenv("CLAUDE_CONFIG_DIR"); own != "" {
		if p.home, err = filepath.Abs(own); err != nil {
			return place{}, err
		}
		p.file = filepath.Join(p.home, ".claude.json")
	}
	if old := filepath.Join(p.home, ".config.json"); exists(old) {
		p.file = old
	}
	return p, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// place finds the client's file. dir is a directory of the project; it matters
// for that scope only.
func (c *Client) place(scope Scope, dir string) (place, error) {
	if scope == User {
		return c.user(runtime.GOOS)
	}
	root, err := projectRoot(dir)
	return place{file: filepath.Join(root, c.project)}, err
}

// projectRoot returns the git working tree that dir is in, or else dir. The
// home directory is nobody's project, even if it is one for its dotfiles; a
// .git of somebody else's, such as one in /tmp, does not count.
func projectRoot(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	top, _ := xdg.Home()
	topInfo, _ := os.Stat(top)
	for at := dir; at != filepath.Dir(at); at = filepath.Dir(at) {
		if info, err := os.Stat(at); err == nil && topInfo != nil && os.SameFile(info, topInfo) {
			break
		}
		git, err := safefile.Lstat(filepath.Join(at, ".git"))
		if err == nil && (git.UID == os.Geteuid() || git.UID == 0) {
			return at, nil
		}
	}
	return dir, nil
}

// Entry is how a client starts the server.
type Entry struct {
	Command string   `json:"command"`
	Args    []string `json:"args,omitempty"`
}

// Action is what happened to an entry.
type Action string

// The actions. Unchanged is an Install, Absent an Uninstall that had nothing to
// do.
const (
	Added     Action = "added"
	Updated   Action = "updated"
	Unchanged Action = "unchanged"
	Removed   Action = "removed"
	Absent    Action = "absent"
)

// Options say where to do it.
type Options struct {
	Client *Client
	Scope  Scope
	Dir    string // a directory of the project, for Project; "" is the current one
	Name   string // of the server
	DryRun bool   // write nothing
}

// Check says what is wrong with the options themselves. A name is judged by the
// rule of the strictest client, Claude Code.
func (o *Options) Check() error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	switch {
	case o.Name == "" || len(o.Name) > maxName || strings.Trim(o.Name, letters) != "":
		return fmt.Errorf("%.40q is not a name for a server: letters, digits, dashes and underscores, at most %d", o.Name, maxName)
	case o.Scope != User && o.Scope != Project:
		return hint.Errorf("the scopes are: user, project", "unknown scope %.40q", string(o.Scope))
	case o.Scope == Project && o.Client.project == "":
		return hint.Errorf("leave --scope out", "a project has no file for %s", o.Client.Title)
	}
	return nil
}

// Result says what was done, or with DryRun would have been.
type Result struct {
	Action Action `json:"action"`
	Client string `json:"client"`
	Scope  Scope  `json:"scope"`
	File   string `json:"file"` // absolute, as the client knows it
	Name   string `json:"name"`
	// Entry is how the client starts the server now, and Before how it did; nil
	// if it does or did not. Of an entry that was not ours, Before is nil: it
	// may hold tokens.
	Entry  *Entry `json:"entry,omitempty"`
	Before *Entry `json:"before,omitempty"`
	// Missing is the folder whose absence shows that this account has never run
	// the client; "" if it is there, or in a project.
	Missing string `json:"missing,omitempty"`
	Deleted bool   `json:"file_deleted,omitempty"` // File held nothing else
	DryRun  bool   `json:"dry_run,omitempty"`
}

// Install makes entry the client's entry of o.Name. An entry of that name that
// is not for `ov mcp serve` is replaced only by force; in one that is, what
// Entry does not know, such as an environment, is kept. Errors are an *Error, a
// *Foreign or about reading and writing.
func Install(o Options, entry Entry, force bool) (Result, error) {
	r, err := o.edit(func(src []byte) (edited, error) {
		return set(src, o.Client, o.Name, entry, force)
	})
	if errors.As(err, new(*Foreign)) {
		err = hint.Wrap(err, "give ours another name: --name NAME; or replace that one: --force")
	}
	return r, err
}

// Uninstall removes the client's entry of o.Name if it is for `ov mcp serve`.
// The object that held it stays, because a file without it is not valid to
// every client; a file in which nothing else is left is removed. Errors are as
// those of Install.
func Uninstall(o Options) (Result, error) {
	r, err := o.edit(func(src []byte) (edited, error) {
		return unset(src, o.Client, o.Name)
	})
	if errors.As(err, new(*Foreign)) {
		err = hint.Wrap(err, "remove it by hand, if it should go")
	}
	return r, err
}

// Alone returns the text of a file that holds nothing but the entry.
func Alone(c *Client, name string, entry Entry) ([]byte, error) {
	e, err := set(nil, c, name, entry, false)
	return e.text, err
}

func (o *Options) edit(change func([]byte) (edited, error)) (Result, error) {
	if err := o.Check(); err != nil {
		return Result{}, err
	}
	p, err := o.Client.place(o.Scope, o.Dir)
	if err != nil {
		return Result{}, err
	}
	f := file{path: p.file, dirPerm: 0o700, perm: 0o600}
	if o.Scope == Project {
		f.dirPerm, f.perm = 0o755, 0o644
	}
	r := Result{Client: o.Client.Name, Scope: o.Scope, File: p.file, Name: o.Name, DryRun: o.DryRun}
	if p.home != "" && !exists(p.home) && !exists(p.file) {
		r.Missing = p.home
	}
	e, err := f.edit(o.DryRun, change)
	if inFile := (*Error)(nil); errors.As(err, &inFile) {
		inFile.File = p.file
	}
	if foreign := (*Foreign)(nil); errors.As(err, &foreign) {
		foreign.File = p.file
	}
	r.Action, r.Entry, r.Before, r.Deleted = e.action, e.now, e.before, e.empty
	return r, err
}

// Error is about the contents of a file.
type Error struct {
	File string // absolute
	Line int    // from 1; 0 if the whole file is meant
	Msg  string // never holds text from the file
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return safefile.Quote(e.File) + " " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", safefile.Quote(e.File), e.Line, e.Msg)
}

// Foreign says that an entry is not for `ov mcp serve`.
type Foreign struct {
	File string // absolute
	Line int    // from 1
	Name string
}

func (e *Foreign) Error() string {
	return fmt.Sprintf("%s:%d: the entry %s is not for ov mcp serve", safefile.Quote(e.File), e.Line, e.Name)
}
