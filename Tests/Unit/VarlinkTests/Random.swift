import Varlink

/// A generator of the same numbers in every run (xorshift64*, Marsaglia 2003), so that a failure can be repeated.
struct Random: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_F491_4F6C_DD1D
    }

    mutating func number(below limit: Int) -> Int { Int(next() % UInt64(limit)) }

    /// A value of any kind; names within an object differ.
    mutating func json(depth: Int) -> JSON {
        switch number(below: depth > 0 ? 7 : 5) {
        case 0: return .null
        case 1: return .bool(next() & 1 == 0)
        case 2: return .integer(Int64(bitPattern: next()) >> Int64(number(below: 64)))
        case 3, 4: return .string(text())
        case 5: return .array((0..<number(below: 4)).map { _ in json(depth: depth - 1) })
        default:
            return .object((0..<number(below: 4)).map { JSON.Member("\($0)" + text(), json(depth: depth - 1)) })
        }
    }

    mutating func text() -> String {
        let scalars: [Unicode.Scalar] = [
            "a", "Z", "0", "\"", "\\", "/", "\u{0}", "\n", "\u{1B}", "\u{7F}", "é", "€", "😀", "{", "]", ",", ":", " ",
            "\u{FEFF}",
        ]
        var result = String.UnicodeScalarView()
        for _ in 0..<number(below: 6) { result.append(scalars[number(below: scalars.count)]) }
        return String(result)
    }
}
