package launch

import (
	"slices"
	"strings"
	"sync"
)

// unsafeNames are the names that a secret may have only if the caller says so.
// What they share: their value is, or leads to, code or commands that programs
// run without being asked to, or it decides which program is run and on whose
// word. Whoever may write one such secret runs code as every service that gets
// it. A trailing * stands for any rest. Names are case-sensitive, as they are
// to the programs.
//
// The list cannot be complete: a program may read whatever it likes. It has
// what the C library, the loaders, the shells, the common interpreters and the
// tools that services call are documented to read. It deliberately leaves out
// what only redirects traffic or trust (HTTP_PROXY, SSL_CERT_FILE,
// SSH_AUTH_SOCK): a proxy's URL with its password is a secret that people keep.
//
// Sources beside those named: environ(7); sudo's env_delete table; "Hacking
// with environment variables", elttam, 2020.
var unsafeNames = []struct {
	why   string
	names string
}{
	// ld.so(8); dyld(1)
	{"dynamic linker", `LD_* DYLD_*`},
	// glibc: sysdeps/generic/unsecvars.h, which set-uid programs drop, but for
	// TMPDIR; mallopt(3), mtrace(3); malloc(3) of macOS
	{"C library", `GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LOCALDOMAIN LOCPATH
		MALLOC_CHECK_ MALLOC_TRACE Malloc* NIS_PATH NLSPATH PATH_LOCALE RESOLV_* RES_OPTIONS TZDIR`},
	// environ(7); XDG Base Directory Specification. USER and LOGNAME say who,
	// not what to run, and are common names in .env files.
	{"where programs and their configuration are found", `PATH HOME SHELL
		XDG_CONFIG_HOME XDG_CONFIG_DIRS XDG_DATA_HOME XDG_DATA_DIRS XDG_RUNTIME_DIR`},
	// POSIX.1-2017 XCU 2.5.3; bash(1), ksh(1), zshparam(1), readline(3). Not ENV:
	// only interactive shells read it, and half of all .env files have ENV=production.
	{"shell", `IFS CDPATH BASH_ENV BASHOPTS SHELLOPTS BASH_FUNC_* BASH_LOADABLES_PATH
		EXECIGNORE GLOBIGNORE PROMPT_COMMAND PS0 PS1 PS2 PS3 PS4 FCEDIT INPUTRC
		FPATH NULLCMD READNULLCMD TMPPREFIX ZDOTDIR`},
	// terminfo(5), termcap(5)
	{"terminal library", `TERMINFO TERMINFO_DIRS TERMCAP TERMPATH`},
	// python --help-env; PYTHONWARNINGS imports the module it names
	{"Python", `PYTHONBREAKPOINT PYTHONCASEOK PYTHONEXECUTABLE PYTHONHOME PYTHONINSPECT PYTHONPATH
		PYTHONPLATLIBDIR PYTHONPYCACHEPREFIX PYTHONSTARTUP PYTHONUSERBASE PYTHONWARNINGS`},
	// perlrun(1)
	{"Perl", `PERL5DB PERL5LIB PERL5OPT PERLIO PERLIO_DEBUG PERLLIB`},
	// ruby(1), gem(1), bundle-config(1)
	{"Ruby", `RUBYLIB RUBYOPT RUBYPATH RUBYSHELL GEM_HOME GEM_PATH BUNDLE_GEMFILE`},
	// node(1); npm's config, which reads either case
	{"Node.js", `NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE BUN_OPTIONS
		npm_config_globalconfig npm_config_node_options npm_config_script_shell npm_config_userconfig
		NPM_CONFIG_GLOBALCONFIG NPM_CONFIG_NODE_OPTIONS NPM_CONFIG_SCRIPT_SHELL NPM_CONFIG_USERCONFIG`},
	// JVM Tool Interface; java(1); the start scripts of the common servers and
	// build tools
	{"Java", `JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS JAVA_HOME JAVA_OPTS JVM_OPTS CLASSPATH
		CATALINA_OPTS ANT_OPTS GRADLE_OPTS MAVEN_OPTS SBT_OPTS`},
	// .NET: host startup hook design, profiling API
	{".NET", `DOTNET_ADDITIONAL_DEPS DOTNET_ROOT* DOTNET_SHARED_STORE DOTNET_STARTUP_HOOKS CORECLR_*`},
	// php(1)
	{"PHP", `PHPRC PHP_INI_SCAN_DIR`},
	// lua(1): LUA_INIT_5_4 and so on too
	{"Lua", `LUA_INIT* LUA_PATH* LUA_CPATH*`},
	// erl(1), elixir(1)
	{"Erlang", `ERL_AFLAGS ERL_FLAGS ERL_LIBS ERL_ZFLAGS ELIXIR_ERL_OPTIONS`},
	// R: ?Startup
	{"R", `R_ENVIRON R_ENVIRON_USER R_HOME R_LIBS R_LIBS_USER R_PROFILE R_PROFILE_USER`},
	// git(1), hg(1), svn(1), rsync(1). Not GIT_*: GIT_TOKEN and the like are
	// what people keep.
	{"version control", `GIT_ASKPASS GIT_COMMON_DIR GIT_CONFIG* GIT_DIR GIT_EDITOR GIT_EXEC_PATH
		GIT_EXTERNAL_DIFF GIT_PAGER GIT_PROXY_COMMAND GIT_SEQUENCE_EDITOR GIT_SSH* GIT_TEMPLATE_DIR
		GIT_WORK_TREE HGRCPATH RSYNC_CONNECT_PROG RSYNC_RSH SVN_SSH`},
	// environ(7), less(1), man(1), ssh(1), sudo(8)
	{"run as a command", `BROWSER EDITOR LESSCLOSE LESSOPEN MANPAGER PAGER SSH_ASKPASS
		SUDO_ASKPASS SUDO_EDITOR VISUAL`},
	// openssl-env(7), krb5.conf(5), and the manuals of the libraries
	{"library plug-ins", `OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES KRB5_CONFIG GIO_EXTRA_MODULES
		GIO_MODULE_DIR GTK_MODULES GTK_PATH LIBMYSQL_PLUGINS LIBMYSQL_PLUGIN_DIR ODBCINSTINI
		ODBCSYSINI QT_PLUGIN_PATH`},
	// make(1), gcc(1), go help environment, the Cargo book
	{"build tools", `CARGO_BUILD_RUSTC CARGO_BUILD_RUSTC_WRAPPER COMPILER_PATH GCC_EXEC_PREFIX
		GNUMAKEFLAGS GOENV GOFLAGS MAKEFILES MAKEFLAGS MFLAGS RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER`},
	// sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.exec(5):
	// only the service manager's own word counts
	{"service manager", `CREDENTIALS_DIRECTORY LISTEN_FDNAMES LISTEN_FDS LISTEN_PID MAINPID
		NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC`},
	{"ov itself", `OV_*`},
}

// keptNames are the variables that are passed on to a program that is given a
// clean environment: who and where it is, how to talk to its user and its
// service manager. A trailing * stands for any rest.
const keptNames = `
	PATH HOME USER LOGNAME SHELL PWD TMPDIR TZ
	LANG LANGUAGE LC_*
	TERM COLORTERM NO_COLOR

	INVOCATION_ID JOURNAL_STREAM LOG_NAMESPACE MAINPID MANAGERPID SYSTEMD_EXEC_PID
	NOTIFY_SOCKET FDSTORE WATCHDOG_PID WATCHDOG_USEC
	LISTEN_FDS LISTEN_FDNAMES LISTEN_PID LISTEN_PIDFDID REMOTE_ADDR REMOTE_PORT
	CREDENTIALS_DIRECTORY RUNTIME_DIRECTORY STATE_DIRECTORY CACHE_DIRECTORY
	LOGS_DIRECTORY CONFIGURATION_DIRECTORY XDG_RUNTIME_DIR
	MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE SERVICE_RESULT EXIT_CODE EXIT_STATUS

	XPC_SERVICE_NAME __CF_USER_TEXT_ENCODING`

// index finds a name in a list like the two above.
type index struct {
	exact    map[string]string // name to reason
	prefixes [][2]string       // prefix, reason
}

func (x *index) add(list, why string) {
	for _, name := range strings.Fields(list) {
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			x.prefixes = append(x.prefixes, [2]string{prefix, why})
		} else {
			x.exact[name] = why
		}
	}
}

func (x *index) find(name string) (why string, ok bool) {
	if why, ok := x.exact[name]; ok {
		return why, true
	}
	i := slices.IndexFunc(x.prefixes, func(p [2]string) bool { return strings.HasPrefix(name, p[0]) })
	if i < 0 {
		return "", false
	}
	return x.prefixes[i][1], true
}

// Built on first use: most commands never ask.
var (
	unsafeIndex = sync.OnceValue(func() *index {
		x := &index{exact: map[string]string{}}
		for _, group := range unsafeNames {
			x.add(group.names, group.why)
		}
		return x
	})
	keptIndex = sync.OnceValue(func() *index {
		x := &index{exact: map[string]string{}}
		x.add(keptNames, "")
		return x
	})
)

// Unsafe reports whether a variable of that name changes how programs are
// loaded or run, and if so, what reads it, in a few words.
func Unsafe(name string) (why string, ok bool) { return unsafeIndex().find(name) }

// Kept reports whether a clean environment keeps an inherited variable of that
// name.
func Kept(name string) bool {
	_, ok := keptIndex().find(name)
	return ok
}
