/* SPDX-License-Identifier: MIT */
/*
 * Where every guest begins, and its way down to user mode.
 *
 * The VMM enters _start in 64-bit mode at CPL0 with paging on, every address
 * mapped to itself, interrupts off and rdi = guest-physical address of the
 * device tree. Its descriptor table has flat segments: 0x08 and 0x10 are the
 * kernel's code and data, 0x20 and 0x28 the user's data and code.
 */
	.section .text.start, "ax", @progbits
	.globl _start
	.type _start, @function
_start:
	lea	stack_end(%rip), %rsp
	xor	%ebp, %ebp
	call	guest_start
	ud2

/* void enter_user_mode(void): returns to its caller, but at CPL3. */
	.text
	.globl enter_user_mode
	.type enter_user_mode, @function
enter_user_mode:
	pop	%rax
	mov	%rsp, %rcx
	push	$0x23
	push	%rcx
	push	$0x2
	push	$0x2b
	push	%rax
	iretq

	.bss
	.balign	16
stack:
	.skip	32768
stack_end:

	.section .note.GNU-stack, "", @progbits
