import CShims
import Glibc

/// A resource limit of setrlimit(2).
public enum ResourceLimit: Sendable {
    /// Open descriptors: the highest number plus one (RLIMIT_NOFILE).
    case openFiles
    /// The end, in bytes, of the last byte that a write may touch (RLIMIT_FSIZE).
    case fileSize

    var number: __rlimit_resource_t {
        switch self {
        case .openFiles: __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        case .fileSize: __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
        }
    }
}

/// Sets a limit of this process, soft and hard; raising it again needs CAP_SYS_RESOURCE.
public func setLimit(_ limit: ResourceLimit, to value: UInt64) throws(SystemError) {
    var both = rlimit(rlim_cur: rlim_t(value), rlim_max: rlim_t(value))
    try call("setrlimit") { setrlimit(limit.number, &both) }
}
