// Package version says which build this is.
package version

import "runtime/debug"

// version is set by the linker in builds from the Makefile.
var version string

// String returns the module's version as the go command recorded it, such as
// v1.2.3, or the commit of a build from a checkout, or "devel".
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
