/// Limits how many discards and write-zeroes of a queue are under way at once; the others wait here, in order. Each can
/// keep one of the ring's helper threads busy for minutes. Where a file's reads need a helper, too (a block device that
/// can't return EAGAIN, a network file), no read would be answered before a range has ended.
struct RangeLimit {
    /// Half of a ring's helper threads for files (SealedRing.fileWorkers).
    static let most = 4

    private(set) var underWay = 0
    /// A ring buffer of tags, with as many places as there are tags.
    private let waiting: UnsafeMutablePointer<UInt16>
    private let depth: Int
    private var first = 0
    private var count = 0

    init(depth: UInt16) {
        self.depth = Int(depth)
        waiting = .allocate(capacity: Int(depth))
        waiting.initialize(repeating: 0, count: Int(depth))
    }

    /// True when the range of that tag may begin. False: it waits, and `end` returns its tag later.
    mutating func begin(_ tag: UInt16) -> Bool {
        if underWay < RangeLimit.most {
            underWay += 1
            return true
        }
        waiting[(first + count) % depth] = tag
        count += 1
        return false
    }

    /// One range has ended. Returns the tag of the range that begins in its place; nil when none waits.
    mutating func end() -> UInt16? {
        guard count > 0 else {
            underWay -= 1
            return nil
        }
        let tag = waiting[first]
        first = (first + 1) % depth
        count -= 1
        return tag
    }

    func deallocate() { waiting.deallocate() }
}
