// Package launch builds the environment of a program that is to receive
// secrets, and becomes that program; or starts it, where its output has to be
// seen on its way ([Start]).
//
// The calling process is replaced by execve(2), so the child is the very
// process that systemd, a shell or a terminal started. What execve(2) keeps is
// kept: pid, parent, process group, session and terminal, open descriptors,
// limits, credentials, cgroup. What Go's runtime changes for itself is put back
// first: the soft RLIMIT_NOFILE, the parent-death signal, and, in programs
// linked for it (see entry_linux_amd64.s), the ignored signals and the signal
// mask.
//
// From [Environ] to execve(2) a secret value is in two places: the locked
// memory of [Env], and the argument block that is made right before the system
// call, and erased by [Start]. The values that the caller handed over are the
// caller's to wipe. After execve(2) the environment is ordinary memory of the
// program, which its own uid and root can read.
package launch
