#include "textflag.h"

// ov_entry: see entry_linux_amd64.s.
TEXT ov_entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0
	SUB	$32, RSP // struct sigaction: handler, flags, restorer, mask
	MOVD	$1, R19  // signal number
	MOVD	$0, R20  // the signals that are ignored

next:
	MOVD	$134, R8 // rt_sigaction(R19, NULL, RSP, 8)
	MOVD	R19, R0
	MOVD	$0, R1
	MOVD	RSP, R2
	MOVD	$8, R3
	SVC
	CBNZ	R0, done
	MOVD	0(RSP), R4
	CMP	$1, R4 // SIG_IGN
	BNE	done
	SUB	$1, R19, R5
	MOVD	$1, R6
	LSL	R5, R6
	ORR	R6, R20

done:
	ADD	$1, R19
	CMP	$64, R19
	BLE	next
	MOVD	R20, ·ignoredAtEntry(SB)

	MOVD	$135, R8 // rt_sigprocmask(SIG_BLOCK, NULL, &blockedAtEntry, 8)
	MOVD	$0, R0
	MOVD	$0, R1
	MOVD	$·blockedAtEntry(SB), R2
	MOVD	$8, R3
	SVC
	MOVD	$1, R4
	MOVD	R4, ·entered(SB)
	ADD	$32, RSP
	JMP	_rt0_arm64_linux(SB)
