import BrokerInterface
import Glibc

/// Descriptors that are kept for root, and for what is under way. The kernel gives the lowest number that is free, so the
/// number of a new one tells how many are left.
enum DescriptorReserve {
    static let size: Int32 = 64

    /// Numbers below this are everybody's. Asked each time: an administrator can change it (prlimit(1)).
    static var end: Int32 {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return .max }
        let all = Int32(clamping: limit.rlim_cur)
        // With few in all, a quarter of them.
        return all - min(size, all / 4)
    }

    /// Why a user other than root does not get what would need that descriptor; nil when there are enough.
    static func refusal(_ descriptor: Int32) -> InterfaceError? {
        let end = end
        guard descriptor >= end else { return nil }
        return .limitReached(
            message: "the broker has no descriptor left: the last ones are root's",
            remedy: "try again in a moment, or ask the administrator for a higher LimitNOFILE", limit: "descriptors",
            value: Int64(end))
    }
}
