/// How a device's data and requests move between the kernel and a worker (docs/design.md §7).
public enum DataMode: String, Sendable, CaseIterable {
    /// The kernel copies data between the request and a buffer of the worker. Any kernel, any user.
    case copy
    /// The kernel moves data directly between file and request (Linux 6.16). It trusts the worker to fill as many bytes
    /// as the worker reports, so the access policy must grant this mode.
    case zeroCopy = "zero-copy"
    /// As copy, but one command fetches many requests and one commits many (Linux 7.0).
    case batch
    /// Both.
    case batchZeroCopy = "batch-zero-copy"

    public var isZeroCopy: Bool { self == .zeroCopy || self == .batchZeroCopy }
    public var isBatch: Bool { self == .batch || self == .batchZeroCopy }

    /// The name for "the best allowed mode".
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
