#include "textflag.h"

// ov_entry is the entry point of programs linked with -ldflags='-E ov_entry'.
// It notes which signals are ignored and which are blocked, and goes on to
// Go's own entry point.
//
// By the time Go code runs it is too late to ask: the runtime has installed
// its handlers over every ignored signal but SIGHUP and SIGINT, and execve(2)
// resets a handled signal to its default. systemd starts services with SIGPIPE
// ignored (IgnoreSIGPIPE= of systemd.exec(5)), so a service started through
// ov would die where the same service started directly sees EPIPE.
//
// The kernel enters here with the stack as in execve(2)'s ABI: nothing may be
// pushed and left, and there is neither a g nor a frame.
TEXT ov_entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	SUBQ	$32, SP // struct sigaction: handler, flags, restorer, mask
	MOVQ	$1, R12 // signal number; callee-saved, so kept by the kernel

next:
	MOVQ	$13, AX // rt_sigaction(R12, NULL, SP, 8)
	MOVQ	R12, DI
	XORL	SI, SI
	MOVQ	SP, DX
	MOVQ	$8, R10
	SYSCALL
	TESTQ	AX, AX
	JNE	done
	CMPQ	0(SP), $1 // SIG_IGN
	JNE	done
	LEAQ	-1(R12), CX
	MOVQ	$1, AX
	SHLQ	CX, AX
	ORQ	AX, ·ignoredAtEntry(SB)

done:
	INCQ	R12
	CMPQ	R12, $64
	JLE	next

	MOVQ	$14, AX // rt_sigprocmask(SIG_BLOCK, NULL, &blockedAtEntry, 8)
	XORL	DI, DI
	XORL	SI, SI
	LEAQ	·blockedAtEntry(SB), DX
	MOVQ	$8, R10
	SYSCALL
	MOVQ	$1, ·entered(SB)
	ADDQ	$32, SP
	JMP	_rt0_amd64_linux(SB)
