/// The identity of a submission, which its completion returns: the request that it belongs to, and its kind. Packed
/// into the 64 bits of user_data (the idea is swift-nio's URingUserData): the tag in the lowest 16 bits, then 8 bits of
/// kind, 8 of slot, and 32 bits for the target.
struct RequestKey: Equatable, Sendable {
    let rawValue: UInt64

    /// The kind of a submission.
    enum Kind: UInt8 {
        /// A fetch or a commit: its completion brings a request. Zero, so that such a key is just the tag.
        case command = 0
        /// A read or write of the target: its completion counts bytes.
        case data = 1
        /// Any other submission of the target: its completion is 0 or an errno.
        case control = 2
        /// The probe of a ring's seal, before any request.
        case probe = 3
        /// A list of requests to commit; the tag is their number. Batch mode only.
        case list = 4
        /// A submission of the queue itself, which belongs to no request: a receive on a socket, a timer. The tag is 0.
        case own = 5
    }

    @inline(__always)
    init(rawValue: UInt64) {
        self.rawValue = rawValue
    }

    @inline(__always)
    init(tag: UInt16, _ kind: Kind) {
        rawValue = UInt64(tag) | UInt64(kind.rawValue) << 16
    }

    /// `slot`: identifies one of the request's submissions, below `Submissions.perRequest`; no two with the same slot
    /// are under way at once. `data`: the target's own bits, returned in the completion.
    @inline(__always)
    init(tag: UInt16, _ kind: Kind, slot: UInt8, data: UInt32 = 0) {
        rawValue = RequestKey(tag: tag, kind).rawValue | UInt64(slot) << 24 | UInt64(data) << 32
    }

    /// The key of one of the queue's own submissions; `slot` is below `Submissions.ofQueue`.
    @inline(__always)
    init(ownSlot slot: UInt8, data: UInt32 = 0) {
        self.init(tag: 0, .own, slot: slot, data: data)
    }

    @inline(__always)
    var tag: UInt16 { UInt16(truncatingIfNeeded: rawValue) }

    @inline(__always)
    var slot: UInt8 { UInt8(truncatingIfNeeded: rawValue &>> 24) }

    @inline(__always)
    var data: UInt32 { UInt32(truncatingIfNeeded: rawValue &>> 32) }

    /// True for a fetch or commit, whose key is just its tag: the hot loop finds them with one comparison.
    @inline(__always)
    var isCommand: Bool { rawValue <= UInt64(UInt16.max) }

    @inline(__always)
    func isKind(_ kind: Kind) -> Bool { UInt8(truncatingIfNeeded: rawValue &>> 16) == kind.rawValue }
}
