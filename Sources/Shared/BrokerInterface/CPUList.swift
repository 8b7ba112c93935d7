import Numbers

/// A non-empty set of processor numbers in the kernel's list format: "0-3,8".
public struct CPUList: Equatable, Sendable {
    public let list: NumberList

    /// The highest number: the kernel's limit for x86_64 (CONFIG_NR_CPUS_RANGE_END).
    public static let highest = 8191

    /// Parses numbers and ranges separated by commas; nil for anything else.
    public init?(_ text: String) {
        guard let list = NumberList(text, highest: CPUList.highest) else { return nil }
        self.list = list
    }

    /// nil when the list is empty or has a number that is too high.
    public init?(_ list: NumberList) {
        guard let last = list.ranges.last?.upperBound, last <= CPUList.highest else { return nil }
        self.list = list
    }

    /// The shortest text for this set.
    public var text: String { list.text }

    /// The first number that `other` lacks; nil when it has all.
    public func first(notIn other: CPUList) -> Int? { list.first(notIn: other.list) }

    /// A bit mask in words of 64 bits.
    public var words: [UInt64] { list.words }

    /// The processors of `set` (a bit mask) that are in this list; the whole list when there is none. The result has
    /// the length of the longer mask, so that masks of equal length stay equal.
    public func restricting(_ set: [UInt64]) -> [UInt64] {
        let count = max(set.count, words.count)
        let mine = words + [UInt64](repeating: 0, count: count - words.count)
        let both = mine.indices.map { $0 < set.count ? set[$0] & mine[$0] : 0 }
        return both.contains { $0 != 0 } ? both : mine
    }
}
