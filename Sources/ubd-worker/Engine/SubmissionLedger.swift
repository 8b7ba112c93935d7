import Targets

/// The submissions under way on a queue whose target has several for a request, or some that belong to no request. It
/// ensures that no slot is used twice at once, that no request ends while one of its submissions is under way, and that
/// none is committed twice. A target that does one of these ends the process: otherwise a reader would get other data.
///
/// All memory is allocated when the queue is made; none for a target with single submissions, for which nothing here is
/// called.
struct SubmissionLedger {
    /// A request that `Queue.complete` ended.
    struct Ended {
        var tag: UInt16
        var outcome: Outcome
    }

    private let submissions: Submissions
    private let depth: Int
    /// The first place of the queue's own slots, and their number.
    private let firstOwn: Int
    private let ownSlots: UInt32
    /// One for each slot of each tag, then those of the queue, then those on its socket.
    private let underWay: UnsafeMutablePointer<Bool>
    /// The number of a tag's slots that are under way.
    private let counts: UnsafeMutablePointer<UInt16>
    /// Whether the target has the request on that tag.
    private let isOpen: UnsafeMutablePointer<Bool>
    /// Requests that were ended since the loop last checked. Each tag is in it at most once, so there is room.
    private let ended: UnsafeMutablePointer<Ended>
    private(set) var endedCount = 0

    init(_ submissions: Submissions, depth: UInt16) {
        precondition((1...256).contains(submissions.perRequest) && submissions.ofQueue + submissions.onSocket <= 256)
        precondition(!submissions.hasSocket || submissions.ofQueue > 0)
        self.submissions = submissions
        let depth = submissions.areSingle ? 0 : Int(depth)
        self.depth = depth
        firstOwn = depth * Int(submissions.perRequest)
        ownSlots = submissions.ofQueue + submissions.onSocket
        let slots = depth * Int(submissions.perRequest) + Int(submissions.ofQueue + submissions.onSocket)
        underWay = .allocate(capacity: slots)
        underWay.initialize(repeating: false, count: slots)
        counts = .allocate(capacity: depth)
        counts.initialize(repeating: 0, count: depth)
        isOpen = .allocate(capacity: depth)
        isOpen.initialize(repeating: false, count: depth)
        ended = .allocate(capacity: depth)
        ended.initialize(repeating: Ended(tag: 0, outcome: .pending), count: depth)
    }

    func deallocate() {
        underWay.deallocate()
        counts.deallocate()
        isOpen.deallocate()
        ended.deallocate()
    }

    // MARK: Requests

    /// A request has arrived. False: the target has one with this tag already, so the driver and the worker disagree.
    mutating func open(_ tag: UInt16) -> Bool {
        if isOpen[Int(tag)] { return false }
        isOpen[Int(tag)] = true
        return true
    }

    /// The request is committed.
    mutating func close(_ tag: UInt16) {
        precondition(Int(tag) < depth && isOpen[Int(tag)], "a request is ended that the target does not have")
        precondition(counts[Int(tag)] == 0, "a request is ended while a submission of it is under way")
        isOpen[Int(tag)] = false
    }

    /// A request is ended by another completion; the loop commits it at the end of the turn.
    mutating func end(_ tag: UInt16, _ outcome: Outcome) {
        precondition(outcome != .pending, "a request is ended as one that goes on")
        close(tag)
        ended[endedCount] = Ended(tag: tag, outcome: outcome)
        endedCount += 1
    }

    /// The ended request at `index`, 0 to `endedCount`.
    func ended(_ index: Int) -> Ended { ended[index] }

    mutating func forgetEnded() { endedCount = 0 }

    // MARK: Submissions

    /// The number of submissions of a request that are under way.
    func count(_ tag: UInt16) -> Int { Int(counts[Int(tag)]) }

    /// The slot's place.
    private func place(_ key: RequestKey) -> Int {
        let perRequest = Int(submissions.perRequest)
        if key.isKind(.own) {
            return own(key)
        }
        precondition(Int(key.tag) < depth && key.slot < submissions.perRequest, "a request has no such slot")
        return Int(key.tag) * perRequest + Int(key.slot)
    }

    func isUnderWay(_ key: RequestKey) -> Bool { underWay[place(key)] }

    /// A submission is pushed.
    mutating func begin(_ key: RequestKey) {
        let place = place(key)
        precondition(!underWay[place], "a slot is used twice at once")
        underWay[place] = true
        guard !key.isKind(.own) else { return }
        precondition(isOpen[Int(key.tag)], "a submission for a request that the target does not have")
        counts[Int(key.tag)] += 1
    }

    /// The same as `begin` for one that is the queue's own, which is what a socket's ring has alone.
    @inline(__always)
    mutating func beginOwn(_ key: RequestKey) {
        let place = own(key)
        precondition(!underWay[place], "a slot is used twice at once")
        underWay[place] = true
    }

    /// The same as `finish`.
    @inline(__always)
    mutating func finishOwn(_ key: RequestKey) -> Bool {
        let place = own(key)
        guard underWay[place] else { return false }
        underWay[place] = false
        return true
    }

    @inline(__always)
    private func own(_ key: RequestKey) -> Int {
        precondition(UInt32(key.slot) < ownSlots, "the queue has no such slot")
        return firstOwn &+ Int(key.slot)
    }

    /// A submission has completed. False: none was under way, so the kernel and the worker disagree.
    mutating func finish(_ key: RequestKey) -> Bool {
        let place = place(key)
        guard underWay[place] else { return false }
        underWay[place] = false
        if !key.isKind(.own) { counts[Int(key.tag)] -= 1 }
        return true
    }
}
