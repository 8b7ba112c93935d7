# labmark: runs the marker instruction that icnt.c knows, and exits with 0 (static, no libc).
.globl _start
_start: .byte 0x0f,0x1f,0x80,1,0x4c,0x41,0x42
 mov $60,%eax
 xor %edi,%edi
 syscall
