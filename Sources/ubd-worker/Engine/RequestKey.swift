/// What a submission carries through the kernel and its completion brings back: which request it belongs to, and what it
/// was. Packed into the 64 bits of user_data (the idea is swift-nio's URingUserData).
struct RequestKey: Equatable, Sendable {
    let rawValue: UInt64

    /// What a submission was for.
    enum Kind: UInt8 {
        /// A fetch or a commit: its completion brings a request. Zero, so that such a key is just the tag.
        case command = 0
        /// A read or write of the target's: its completion counts bytes.
        case data = 1
        /// Anything else of the target's: its completion is 0 or an errno.
        case control = 2
        /// The probe of a ring's seal, before any request.
        case probe = 3
        /// A list of requests given to the driver; the tag is how many they were. Batch mode only.
        case list = 4
    }

    @inline(__always)
    init(rawValue: UInt64) {
        self.rawValue = rawValue
    }

    @inline(__always)
    init(tag: UInt16, _ kind: Kind) {
        rawValue = UInt64(tag) | UInt64(kind.rawValue) << 16
    }

    @inline(__always)
    var tag: UInt16 { UInt16(truncatingIfNeeded: rawValue) }

    /// Compared as a number: the hot loop asks for one kind at a time.
    @inline(__always)
    func isKind(_ kind: Kind) -> Bool { rawValue >> 16 == UInt64(kind.rawValue) }
}
