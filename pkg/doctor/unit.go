package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opaquevault/ov/pkg/safefile"
)

const (
	agentUnit = "ov-agent.service"
	// maxUnitFile bounds a unit's file, in bytes. What is longer was not written
	// by hand.
	maxUnitFile = 256 << 10
	// maxUnits bounds the units that are looked at when none is named.
	maxUnits = 4096
)

// properties are what is asked of systemctl show, and all that is believed of
// its answer.
var properties = []string{
	"Id", "LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "User", "DynamicUser",
	"ExecStart", "EnvironmentFiles", "Environment", "NeedDaemonReload", "FragmentPath", "DropInPaths",
	"UnitFileState", "WorkingDirectory", "LimitMEMLOCKSoft", "InvocationID",
}

// unit is what systemd has loaded of a service.
type unit struct {
	id, loadState, activeState, subState, result string
	mainStatus, invocation                       string
	user                                         string // "" is root
	dynamicUser, needReload                      bool
	commands                                     []command
	envFiles                                     []envFile
	environment                                  map[string]string // HOME and XDG_*_HOME only: the others may be secret
	files                                        []string          // the fragment and its drop-ins
	fileState                                    string
	workDir                                      string
	memlock                                      string // soft limit: bytes, or "infinity"
}

// command is one ExecStart= line. systemctl joins argv by spaces and does not
// quote, so a word that holds spaces comes back as several, until unquote.
type command struct {
	path   string
	argv   []string
	joined string
}

type envFile struct {
	path     string
	optional bool // "-" before the path: systemd does not mind its absence
}

// parseShow reads the answer of systemctl show for one unit. Whatever it says
// may go back to text in a unit's file, which can hold newlines that look like
// further properties: a property that comes twice, or was not asked for, makes
// all of it unusable.
func parseShow(out []byte) (*unit, error) {
	u := &unit{environment: map[string]string{}}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, ok := strings.Cut(line, "=")
		if !ok || !slices.Contains(properties, name) {
			return nil, errors.New("systemctl show answered with a line that is no property that was asked for")
		}
		if name != "ExecStart" && name != "EnvironmentFiles" {
			if seen[name] {
				return nil, fmt.Errorf("systemctl show answered with two values of %s", name)
			}
			seen[name] = true
		}
		switch name {
		case "Id":
			u.id = value
		case "LoadState":
			u.loadState = value
		case "ActiveState":
			u.activeState = value
		case "SubState":
			u.subState = value
		case "Result":
			u.result = value
		case "ExecMainStatus":
			u.mainStatus = value
		case "InvocationID":
			u.invocation = value
		case "User":
			u.user = value
		case "DynamicUser":
			u.dynamicUser = value == "yes"
		case "NeedDaemonReload":
			u.needReload = value == "yes"
		case "UnitFileState":
			u.fileState = value
		case "WorkingDirectory":
			u.workDir = strings.TrimPrefix(value, "!") // "!" marks one that may be absent
		case "LimitMEMLOCKSoft":
			u.memlock = value
		case "FragmentPath":
			if filepath.IsAbs(value) {
				u.files = append([]string{value}, u.files...)
			}
		case "DropInPaths":
			for _, p := range strings.Fields(value) {
				if filepath.IsAbs(p) {
					u.files = append(u.files, p)
				}
			}
		case "Environment":
			for _, item := range unquoteList(value) {
				if k, v, _ := strings.Cut(item, "="); k == "HOME" || k == "XDG_DATA_HOME" || k == "XDG_CONFIG_HOME" {
					u.environment[k] = v
				}
			}
		case "EnvironmentFiles":
			f, ok := parseEnvFile(value)
			if !ok {
				return nil, errors.New("systemctl show answered with an EnvironmentFiles of an unknown form")
			}
			u.envFiles = append(u.envFiles, f)
		case "ExecStart":
			c, ok := parseExecStart(value)
			if !ok {
				return nil, errors.New("systemctl show answered with an ExecStart of an unknown form")
			}
			u.commands = append(u.commands, c)
		}
	}
	if u.id == "" || u.loadState == "" {
		return nil, errors.New("systemctl show did not answer")
	}
	return u, nil
}

// parseExecStart reads one value of the property ExecStart:
//
//	{ path=/bin/x ; argv[]=/bin/x a b ; ignore_errors=no ; start_time=… }
func parseExecStart(value string) (command, bool) {
	rest, ok := strings.CutPrefix(value, "{ path=")
	if !ok {
		return command{}, false
	}
	path, rest, ok := strings.Cut(rest, " ; argv[]=")
	if !ok || path == "" {
		return command{}, false
	}
	// The last one: an argument may hold the same text.
	end := strings.LastIndex(rest, " ; ignore_errors=")
	if end < 0 || !strings.HasSuffix(rest, " }") {
		return command{}, false
	}
	return command{path, strings.Fields(rest[:end]), rest[:end]}, true
}

func parseEnvFile(value string) (envFile, bool) {
	if p, ok := strings.CutSuffix(value, " (ignore_errors=no)"); ok {
		return envFile{p, false}, true
	}
	p, ok := strings.CutSuffix(value, " (ignore_errors=yes)")
	return envFile{p, true}, ok
}

// unquoteList splits a list as systemctl show prints one: words, or words in
// double quotes with backslashes.
func unquoteList(s string) []string {
	var list []string
	for s = strings.TrimLeft(s, " "); s != ""; s = strings.TrimLeft(s, " ") {
		if s[0] != '"' {
			word, rest, _ := strings.Cut(s, " ")
			list, s = append(list, word), rest
			continue
		}
		var b strings.Builder
		i := 1
		for ; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' && i+1 < len(s) {
				i++
			}
			b.WriteByte(s[i])
		}
		list, s = append(list, b.String()), s[min(i+1, len(s)):]
	}
	return list
}

// invocation is what a command line of ov run, or of ov-agent, says.
type invocation struct {
	app, env, machineKey, vault, socket string
	secrets                             []string
	named                               bool // --secrets was given
	agentOnly                           bool
	program                             string // what ov becomes
	path                                string // the ov that does
}

// parseRun reads the command line of an ov run. ok is false for any other
// command.
func parseRun(c command) (inv invocation, ok bool) {
	if filepath.Base(c.path) != "ov" || len(c.argv) == 0 {
		return inv, false
	}
	inv.path = c.path
	words := inv.flags(c.argv[1:])
	if len(words) == 0 || words[0] != "run" {
		return inv, false
	}
	if words = inv.flags(words[1:]); len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) > 0 {
		inv.program = words[0]
	}
	return inv, true
}

// parseAgent reads the command line of an ov-agent.
func parseAgent(c command) (inv invocation, ok bool) {
	if filepath.Base(c.path) != "ov-agent" || len(c.argv) == 0 {
		return inv, false
	}
	inv.path = c.path
	inv.flags(c.argv[1:])
	return inv, true
}

// flags takes the flags at the front of words and returns the rest.
func (inv *invocation) flags(words []string) []string {
	for len(words) > 0 && strings.HasPrefix(words[0], "-") && words[0] != "--" && words[0] != "-" {
		name, value, has := strings.Cut(words[0], "=")
		words = words[1:]
		to := map[string]*string{"--app": &inv.app, "--env": &inv.env, "--machine-key": &inv.machineKey,
			"--vault": &inv.vault, "--socket": &inv.socket}[name]
		switch {
		case name == "--agent":
			inv.agentOnly = true
			continue
		case to == nil && !slices.Contains([]string{"--secrets", "--ttl", "--idle"}, name):
			continue // takes no value
		case !has && len(words) == 0:
			return nil
		case !has:
			value, words = words[0], words[1:]
		}
		if to != nil {
			*to = value
		}
		if name == "--secrets" {
			inv.named = true
			for n := range strings.SplitSeq(value, ",") {
				if n = strings.TrimSpace(n); n != "" {
					inv.secrets = append(inv.secrets, n)
				}
			}
		}
	}
	return words
}

func (u *unit) failed() bool { return u.activeState == "failed" || u.subState == "auto-restart" }

// programFailed tells whether it was the service's own program that failed, and
// not systemd (200 and up, systemd.exec(5) "Process Exit Codes") or ov before it.
func (u *unit) programFailed() bool {
	setUp := slices.Contains([]string{"125", "126", "127"}, u.mainStatus) || len(u.mainStatus) == 3 && u.mainStatus[0] == '2'
	return u.failed() && u.result != "resources" && (u.result != "exit-code" || !setUp)
}

// run returns the ov run that the service is started by.
func (u *unit) run() (invocation, bool) {
	for _, c := range u.commands {
		if inv, ok := parseRun(c); ok {
			return inv, true
		}
	}
	return invocation{}, false
}

// show asks systemd for what it has loaded of a unit.
func (s *System) show(ctx context.Context, name string) (*unit, error) {
	out, err := s.Systemctl(ctx, "show", "--no-pager", "--property="+strings.Join(properties, ","), "--", name)
	if err != nil {
		return nil, fmt.Errorf("cannot ask systemd about %s: %w", name, err)
	}
	u, err := parseShow(out)
	if err != nil {
		return nil, fmt.Errorf("unit %s: %w", name, err)
	}
	u.unquote()
	return u, nil
}

// unitName completes the name of a service: "myapp" is "myapp.service".
func unitName(name string) (string, error) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
	if name == "" || len(name) > 247 || strings.Trim(name, letters) != "" || name[0] == '-' {
		return "", fmt.Errorf("%q is not the name of a unit (systemd.unit(5))", name)
	}
	if !strings.HasSuffix(name, ".service") {
		name += ".service"
	}
	return name, nil
}

// candidates returns the services in dir, where administrators keep theirs,
// whose files mention ov run.
func candidates(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	found := map[string]bool{}
	for i, e := range entries {
		name := e.Name()
		if i >= maxUnits {
			break
		}
		files := []string{filepath.Join(dir, name)}
		if base, ok := strings.CutSuffix(name, ".d"); ok && e.IsDir() {
			name = base
			files, _ = filepath.Glob(filepath.Join(dir, name+".d", "*.conf"))
		}
		if _, err := unitName(name); err != nil || !strings.HasSuffix(name, ".service") ||
			strings.HasSuffix(name, "@.service") || name == agentUnit {
			continue
		}
		for _, file := range files {
			for _, line := range settings(readText(file), "ExecStart") {
				if f := strings.Fields(line); len(f) > 1 && filepath.Base(strings.Trim(f[0], `-@:+!"`)) == "ov" && slices.Contains(f, "run") {
					found[name] = true
				}
			}
		}
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// settings returns the values that a unit's file gives a setting, in order. It
// knows comments, continued lines and the empty value that starts anew
// (systemd.syntax(7)), and leaves quotes as they are.
func settings(text, key string) []string {
	var list []string
	var whole string
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}
		if part, more := strings.CutSuffix(trimmed, `\`); more {
			whole += part + " "
			continue
		}
		name, value, ok := strings.Cut(whole+trimmed, "=")
		whole = ""
		if !ok || strings.TrimSpace(name) != key {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			list = nil
			continue
		}
		list = append(list, value)
	}
	return list
}

// text is what the unit's files say now, which is not always what is loaded.
func (u *unit) text() string {
	var b strings.Builder
	for _, file := range u.files {
		b.WriteString(readText(file))
		b.WriteByte('\n')
	}
	return b.String()
}

// readText returns a unit's file, or "".
func readText(file string) string {
	b, err := readFile(file, maxUnitFile)
	if err != nil {
		return ""
	}
	return string(b)
}

// readFile reads a regular file of at most limit bytes, and does not wait for
// anything else that is in its place.
func readFile(file string, limit int) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: file, Err: errors.New("not a regular file")}
	}
	if st.Size() > int64(limit) {
		return nil, &fs.PathError{Op: "read", Path: file, Err: fmt.Errorf("more than %d bytes", limit)}
	}
	buf := make([]byte, st.Size()+1)
	n, err := safefile.ReadAll(int(f.Fd()), buf)
	if err != nil {
		clear(buf)
		return nil, &fs.PathError{Op: "read", Path: file, Err: err}
	}
	return buf[:min(n, int(st.Size()))], nil
}
