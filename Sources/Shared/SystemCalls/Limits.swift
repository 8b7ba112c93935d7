import CShims
import Glibc

/// A limit of setrlimit(2), by what it bounds.
public enum ResourceLimit: Sendable {
    /// Descriptor numbers: one more than the highest.
    case openFiles
    /// Bytes: the end of the last byte that a write may touch.
    case fileSize

    var number: __rlimit_resource_t {
        switch self {
        case .openFiles: __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        case .fileSize: __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
        }
    }
}

/// Sets a limit of this process, soft and hard: it can't be raised again without CAP_SYS_RESOURCE.
public func setLimit(_ limit: ResourceLimit, to value: UInt64) throws(SystemError) {
    var both = rlimit(rlim_cur: rlim_t(value), rlim_max: rlim_t(value))
    try call("setrlimit") { setrlimit(limit.number, &both) }
}
