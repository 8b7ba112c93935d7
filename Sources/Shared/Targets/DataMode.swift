/// How the data of requests moves between the kernel and a worker, and how requests come and go (docs/design.md §7).
public enum DataMode: String, Sendable, CaseIterable {
    /// The kernel copies data between the request and a buffer of the worker's. Every kernel, everybody.
    case copy
    /// The worker has the kernel move data between file and request; nothing is copied (Linux 6.16). The kernel trusts
    /// such a worker to fill what it says it filled, so the access policy must grant it.
    case zeroCopy = "zero-copy"
    /// As copy, but one command brings many requests and one gives many back (Linux 7.0).
    case batch
    /// Both.
    case batchZeroCopy = "batch-zero-copy"

    public var isZeroCopy: Bool { self == .zeroCopy || self == .batchZeroCopy }
    public var isBatch: Bool { self == .batch || self == .batchZeroCopy }

    /// The name for "the best that is allowed".
    public static let automatic = "auto"

    /// One sentence without a full stop, for help texts.
    public var summary: String {
        switch self {
        case .copy: "data is copied between kernel and worker; every kernel"
        case .zeroCopy: "data is not copied; Linux 6.16, and the access policy must say zero-copy=yes"
        case .batch: "as copy, with many requests in one command; Linux 7.0"
        case .batchZeroCopy: "as zero-copy, with many requests in one command; Linux 7.0"
        }
    }
}
