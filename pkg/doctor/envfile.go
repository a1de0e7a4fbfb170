package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/dotenv"
	"github.com/opaquevault/ov/pkg/kek"
	"github.com/opaquevault/ov/pkg/safefile"
)

// maxEnvFile bounds the .env files that are looked into, in bytes.
const maxEnvFile = 4 << 20

// reload checks whether systemd runs what the unit's files say.
func (d *doctor) reload(s *subject) {
	if s.unit == nil {
		return
	}
	if !s.unit.needReload {
		d.ok("reload", s.name, "systemd has loaded the unit as it is on disk")
		return
	}
	s.failures++
	problem := "the unit was changed on disk, and systemd still uses what it loaded before"
	onDisk := settings(s.unit.text(), "EnvironmentFile")
	for _, f := range s.unit.envFiles {
		if !slices.ContainsFunc(onDisk, func(line string) bool { return envFilePath(line) == f.path }) {
			problem += ", with EnvironmentFile=" + safefile.Quote(f.path)
		}
	}
	d.fail("reload", s.name, reload(s.name), "%s", problem)
}

func envFilePath(setting string) string {
	return strings.Trim(strings.TrimPrefix(strings.Trim(setting, `"`), "-"), `"`)
}

// envFiles checks what the .env file's end has left behind: a unit that still
// wants it, plaintext on the disk, and names that were never imported.
func (d *doctor) envFiles(s *subject) {
	if s.unit == nil {
		return
	}
	onDisk := settings(s.unit.text(), "EnvironmentFile")
	for _, f := range s.unit.envFiles {
		q := safefile.Quote(f.path)
		fix := s.unit.removeEnvFile(f.path)
		if !slices.ContainsFunc(onDisk, func(line string) bool { return envFilePath(line) == f.path }) {
			fix = reload(s.name) // the line is gone from the file already
		}
		_, err := os.Stat(f.path)
		switch {
		case absent(err) && f.optional:
			d.note("env-file", s.name, fix, "the unit names %s, which does not exist and is not needed", q)
		case absent(err):
			s.failures++
			d.fail("env-file", s.name, fix, "the unit needs EnvironmentFile=%s, which does not exist: systemd does not start the service", q)
		case errors.Is(err, fs.ErrPermission):
			d.needRoot(s, "env-file", "only root can look at %s, which the unit reads", q)
		case err == nil && s.runs:
			d.note("env-file", s.name, fix, "the service has ov, and gets %s in plaintext too", q)
		}
	}
	if !s.known {
		return
	}
	clean := true
	told := map[string]bool{} // names that were reported: a file and its .bak have the same
	for _, file := range d.plainFiles(s) {
		if !d.compare(s, file, told) {
			clean = false
		}
	}
	if clean {
		d.ok("env-file", s.name, "%s has all that is left in .env files", s.ref())
	}
}

// compare looks for names in a .env file that the vault does not have, or the
// service does not get. It returns false if it reported any.
func (d *doctor) compare(s *subject, file string, told map[string]bool) bool {
	have, err := envNames(file)
	q := safefile.Quote(file)
	switch {
	case errors.Is(err, fs.ErrPermission):
		d.needRoot(s, "env-file", "only its owner and root can compare %s with the vault", q)
		return false
	case err != nil:
		d.note("env-file", s.name, "ov secret import "+safefile.Shell(file)+" --dry-run --app "+s.inv.app+" --env "+s.inv.env, "%s: %v", q, err)
		return false
	}
	var lost, unused []string
	for _, name := range have {
		switch {
		case told[name]:
		case !slices.Contains(s.names, name):
			lost = append(lost, name)
		case s.inv.named && !slices.Contains(s.inv.secrets, name):
			unused = append(unused, name)
		}
		told[name] = true
	}
	// What runs has no need of them, and what did not get so far did not miss them.
	report := d.note
	if s.unit.programFailed() && s.failures == 0 {
		report = d.fail
	}
	if len(lost) > 0 {
		fix := d.importFrom(s, file) + " && "
		if s.inv.named && s.runs {
			fix += s.alsoNames(lost)
		} else {
			fix += restart(s.name)
		}
		report("env-file", s.name, fix, "%s has %s, which %s has not", q, strings.Join(lost, ", "), s.ref())
	}
	if len(unused) > 0 && s.runs {
		report("env-file", s.name, s.alsoNames(unused),
			"the service does not get %s, which %s and %s have: its --secrets does not name them", strings.Join(unused, ", "), q, s.ref())
	}
	if s.unit.programFailed() && len(lost)+len(unused) > 0 {
		s.failures++
	}
	return len(lost)+len(unused) == 0
}

// alsoNames returns the command that adds names to the unit's --secrets.
func (s *subject) alsoNames(names []string) string {
	loaded := strings.Join(s.inv.secrets, ",")
	return s.unit.changeFlag("--secrets", loaded, loaded+","+strings.Join(names, ","))
}

// importFrom returns the command that brings what the vault does not have of
// a .env file into it.
func (d *doctor) importFrom(s *subject, file string) string {
	return d.as(s.account, "ov secret import "+safefile.Shell(file)+" --skip-existing --app "+s.inv.app+" --env "+s.inv.env+s.vaultFlag())
}

// plainFiles returns the .env files of the service that exist, also those that
// were put aside as .bak: what the unit names, and .env and .env.ENV in its
// working directory and beside or above its program.
func (d *doctor) plainFiles(s *subject) []string {
	var list []string
	add := func(path string) {
		for _, p := range []string{path, path + ".bak"} {
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	if s.unit == nil {
		return nil
	}
	for _, f := range s.unit.envFiles {
		add(f.path)
	}
	dirs := []string{s.unit.workDir}
	if filepath.IsAbs(s.inv.program) {
		dirs = append(dirs, filepath.Dir(s.inv.program), filepath.Dir(filepath.Dir(s.inv.program)))
	}
	for _, dir := range dirs {
		if filepath.IsAbs(dir) && dir != "/" {
			add(filepath.Join(dir, ".env"))
			if s.inv.env != "" {
				add(filepath.Join(dir, ".env."+s.inv.env))
			}
		}
	}
	return list
}

// plainFile returns the first of plainFiles that has all the names, or "".
func (d *doctor) plainFile(s *subject, names []string) string {
	for _, file := range d.plainFiles(s) {
		have, err := envNames(file)
		if err == nil && !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(have, n) }) {
			return file
		}
	}
	return ""
}

// envNames returns the names in a .env file, and forgets the values.
func envNames(file string) (names []string, err error) {
	src, err := readFile(file, maxEnvFile)
	if err != nil {
		return nil, err
	}
	defer clear(src)
	kek.Do(func() {
		var pairs []dotenv.Pair
		if pairs, err = dotenv.Parse(src); err != nil {
			return
		}
		for _, p := range pairs {
			names = append(names, strings.Clone(p.Name))
		}
		dotenv.Wipe(pairs)
	})
	return names, err
}
