import Numbers

/// A set of CPUs by number, written as the kernel does: "0-3,8". Never empty.
public struct CPUList: Equatable, Sendable {
    public let list: NumberList

    /// The highest number that there can be: the kernel's own limit for x86_64 (CONFIG_NR_CPUS_RANGE_END).
    public static let highest = 8191

    /// Reads a list; nil when it is none: numbers and ranges with commas between them, nothing else.
    public init?(_ text: String) {
        guard let list = NumberList(text, highest: CPUList.highest) else { return nil }
        self.list = list
    }

    /// nil when it has no number, or one that is too high.
    public init?(_ list: NumberList) {
        guard let last = list.ranges.last?.upperBound, last <= CPUList.highest else { return nil }
        self.list = list
    }

    /// The shortest way to write it.
    public var text: String { list.text }

    /// The first that `other` does not have; nil when it has all.
    public func first(notIn other: CPUList) -> Int? { list.first(notIn: other.list) }

    /// One bit for each, in words of 64.
    public var words: [UInt64] { list.words }

    /// Those of a set of CPUs (one bit each) that are in this list; the whole list when there is none. Both
    /// are as long as the longer one, so that sets of one length stay so.
    public func restricting(_ set: [UInt64]) -> [UInt64] {
        let count = max(set.count, words.count)
        let mine = words + [UInt64](repeating: 0, count: count - words.count)
        let both = mine.indices.map { $0 < set.count ? set[$0] & mine[$0] : 0 }
        return both.contains { $0 != 0 } ? both : mine
    }
}
