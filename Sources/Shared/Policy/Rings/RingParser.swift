/// Reads `policy/rings/*.ring`; the grammar stands at `RingPolicy`.
struct RingParser {
    private(set) var operations: Set<UInt8> = []
    private(set) var registerOperations: Set<UInt8> = []
    private(set) var required: UInt8 = 0
    private(set) var allowed: UInt8 = 0
    private let read: PolicyReader

    init(read: @escaping PolicyReader) { self.read = read }

    mutating func parse(_ file: PolicyFile, isIncluded: Bool) throws(PolicyError) {
        for line in file.lines where !line.hasNoCode {
            var cursor = LineCursor(line)
            if cursor.takeKeyword("@include") {
                guard !isIncluded else { throw nestedInclude(cursor.location(at: 0)) }
                let name = try cursor.includeName()
                try parse(PolicyFile(name.text, from: name.location, read: read), isIncluded: true)
            } else if cursor.takeKeyword("op") {
                try add(&cursor, from: RingNames.operations, prefix: "IORING_OP_", to: &operations)
            } else if cursor.takeKeyword("register") {
                try add(
                    &cursor, from: RingNames.registerOperations, prefix: "IORING_REGISTER_", to: &registerOperations)
            } else if cursor.takeKeyword("flags") {
                try flags(&cursor)
            } else {
                throw cursor.expected("op, register, flags or @include")
            }
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
