import CLibseccomp
import Glibc

/// The name of a system call, "kill" for 62 on x86_64; nil when libseccomp does not know it. `auditArchitecture` is an
/// AUDIT_ARCH number (linux/audit.h), as in the kernel's audit records.
public func systemCallName(_ number: Int32, auditArchitecture: UInt32) -> String? {
    guard let name = seccomp_syscall_resolve_num_arch(auditArchitecture, number) else { return nil }
    defer { free(name) }
    return String(cString: name)
}
