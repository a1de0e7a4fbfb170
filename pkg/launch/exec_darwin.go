package launch

// maxTotal bounds arguments and environment, in bytes: ARG_MAX of execve(2).
const maxTotal = 1 << 20

const totalRule = "sysctl kern.argmax, 1 MiB"

// maxEntry bounds one string with its NUL, in bytes. macOS bounds only the
// total.
func maxEntry() int { return maxTotal }

// putBack has nothing to do: a parent-death signal does not exist here, and
// launchd starts programs with no signal ignored or blocked. SIGHUP and SIGINT
// stay ignored where they were, by Go's runtime.
func putBack() {}
