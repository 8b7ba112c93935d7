/// A set of CPUs by number, written as the kernel does: "0-3,8".
public struct CPUList: Equatable, Sendable {
    /// In rising order, without gaps between neighbours: never empty.
    private let ranges: [ClosedRange<Int>]

    /// The highest number that there can be: the kernel's own limit for x86_64 (CONFIG_NR_CPUS_RANGE_END).
    public static let highest = 8191

    /// Reads a list; nil when it is none: numbers and ranges with commas between them, nothing else.
    public init?(_ text: String) {
        guard text.utf8.count <= 4096 else { return nil }
        var found: [ClosedRange<Int>] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false).map(CPUList.number)
            guard ends.count <= 2, let first = ends.first ?? nil, let last = ends.last ?? nil, first <= last else {
                return nil
            }
            found.append(first...last)
        }
        guard !found.isEmpty else { return nil }
        var joined: [ClosedRange<Int>] = []
        for range in found.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if let last = joined.last, range.lowerBound <= last.upperBound + 1 {
                joined[joined.count - 1] = last.lowerBound...max(last.upperBound, range.upperBound)
            } else {
                joined.append(range)
            }
        }
        ranges = joined
    }

    private static func number(_ text: Substring) -> Int? {
        guard !text.isEmpty, text.utf8.count <= 4, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            return nil
        }
        return Int(text).flatMap { $0 <= highest ? $0 : nil }
    }

    /// The shortest way to write it.
    public var text: String {
        ranges.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }.joined(separator: ",")
    }

    /// The first that `other` does not have; nil when it has all.
    public func first(notIn other: CPUList) -> Int? {
        for range in ranges {
            if let missing = range.first(where: { cpu in !other.ranges.contains { $0.contains(cpu) } }) {
                return missing
            }
        }
        return nil
    }

    /// One bit for each, in words of 64.
    public var words: [UInt64] {
        var words = [UInt64](repeating: 0, count: (ranges.last?.upperBound ?? 0) / 64 + 1)
        for range in ranges { for cpu in range { words[cpu / 64] |= 1 << UInt64(cpu % 64) } }
        return words
    }
}
