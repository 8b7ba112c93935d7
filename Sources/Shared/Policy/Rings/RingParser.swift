/// Parses `policy/rings/*.ring`; see `RingPolicy` for the grammar.
struct RingParser {
    private(set) var operations: Set<UInt8> = []
    private(set) var registerOperations: Set<UInt8> = []
    private(set) var required: UInt8 = 0
    private(set) var allowed: UInt8 = 0
    private let mode: RingMode
    private let read: PolicyReader

    init(mode: RingMode, read: @escaping PolicyReader) {
        self.mode = mode
        self.read = read
    }

    mutating func parse(_ file: PolicyFile, isIncluded: Bool) throws(PolicyError) {
        for line in file.lines where !line.hasNoCode {
            var cursor = LineCursor(line)
            if cursor.takeKeyword("@include") {
                guard !isIncluded else { throw nestedInclude(cursor.location(at: 0)) }
                let name = try cursor.includeName()
                try parse(PolicyFile(name.text, from: name.location, read: read), isIncluded: true)
            } else if cursor.takeKeyword("in") {
                if try isInForce(&cursor) {
                    try rule(&cursor, expected: "op, register or flags")
                } else {
                    // A line for another mode must be valid, but has no effect.
                    var other = RingParser(mode: mode, read: read)
                    try other.rule(&cursor, expected: "op, register or flags")
                }
            } else {
                try rule(&cursor, expected: "op, register, flags, in or @include")
            }
        }
    }

    private func isInForce(_ cursor: inout LineCursor) throws(PolicyError) -> Bool {
        let before = cursor
        switch cursor.blankSeparated()?.text {
        case "copy": return !mode.zeroCopy
        case "zero-copy": return mode.zeroCopy
        case "batch": return mode.batch
        default: throw before.expected("copy, zero-copy or batch after 'in'")
        }
    }

    private mutating func rule(_ cursor: inout LineCursor, expected: String) throws(PolicyError) {
        if cursor.takeKeyword("op") {
            try add(&cursor, from: RingNames.operations, prefix: "IORING_OP_", to: &operations)
        } else if cursor.takeKeyword("register") {
            try add(&cursor, from: RingNames.registerOperations, prefix: "IORING_REGISTER_", to: &registerOperations)
        } else if cursor.takeKeyword("flags") {
            try flags(&cursor)
        } else {
            throw cursor.expected(expected)
        }
    }

    private func add(
        _ cursor: inout LineCursor, from names: [String], prefix: String, to numbers: inout Set<UInt8>
    ) throws(PolicyError) {
        cursor.skipBlanks()
        let before = cursor
        guard let word = cursor.identifier(), let number = names.firstIndex(of: word.text) else {
            throw before.expected("one name of Linux 7.3's linux/io_uring.h without \(prefix)")
        }
        try cursor.expectEnd(after: word.text)
        guard numbers.insert(UInt8(number)).inserted else {
            throw PolicyError(word.location, "\(word.text) is in the policy already")
        }
    }

    private mutating func flags(_ cursor: inout LineCursor) throws(PolicyError) {
        let areRequired = cursor.takeKeyword("required")
        guard areRequired || cursor.takeKeyword("allowed") else {
            throw cursor.expected("'required' or 'allowed' after 'flags'")
        }
        repeat {
            cursor.skipBlanks()
            let before = cursor
            guard let word = cursor.identifier(), let bit = RingNames.flags.firstIndex(of: word.text) else {
                throw before.expected("a flag: \(RingNames.flags.joined(separator: ", "))")
            }
            let flag = UInt8(1) << bit
            guard (required | allowed) & flag == 0 else {
                throw PolicyError(word.location, "\(word.text) is in the policy already")
            }
            if areRequired { required |= flag } else { allowed |= flag }
            cursor.skipBlanks()
        } while !cursor.isAtEnd
    }
}
