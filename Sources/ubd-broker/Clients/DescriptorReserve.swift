import BrokerInterface
import Glibc

/// Descriptors reserved for root and for calls in progress. The kernel assigns the lowest free number, so the number of
/// a new descriptor tells how many are left.
enum DescriptorReserve {
    static let size: Int32 = 64

    /// The first reserved number. Computed on each use, since an administrator can change the limit (prlimit(1)).
    static var end: Int32 {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return .max }
        let all = Int32(clamping: limit.rlim_cur)
        // A quarter when the limit is low.
        return all - min(size, all / 4)
    }

    /// Why a user other than root is refused when it needed this descriptor; nil when enough are left.
    static func refusal(_ descriptor: Int32) -> InterfaceError? {
        let end = end
        guard descriptor >= end else { return nil }
        return .limitReached(
            message: "the broker has no descriptors left but those reserved for root",
            remedy: "try again in a moment, or ask the administrator for a higher LimitNOFILE", limit: "descriptors",
            value: Int64(end))
    }
}
