/// How the data and the requests of a ring's device move; lines of a ring policy can be for one of them only.
public struct RingMode: Equatable, Sendable {
    /// `in zero-copy`; otherwise `in copy`.
    public var zeroCopy: Bool
    /// `in batch`.
    public var batch: Bool

    public init(zeroCopy: Bool = false, batch: Bool = false) {
        self.zeroCopy = zeroCopy
        self.batch = batch
    }

    /// All that there are.
    public static let all = [false, true].flatMap { zeroCopy in
        [false, true].map { RingMode(zeroCopy: zeroCopy, batch: $0) }
    }
}

/// What a sealed ring may do: the values for `IORING_REGISTER_RESTRICTIONS`. Text in `policy/rings/*.ring`:
///
///     op NAME                  an operation, IORING_OP_NAME
///     register NAME            a register call, IORING_REGISTER_NAME
///     flags required NAME …    flags that every operation must have, IOSQE_NAME
///     flags allowed NAME …     flags that an operation may have besides
///     @include FILE
///     in MODE …                any of these, only in rings of that mode: copy, zero-copy, batch
///
/// A value of this type always has an operation, a register call and the required flag FIXED_FILE: without the flag
/// a ring could be given any file number, and without a register call kernels from 7.0 leave all of them open
/// (io_uring/register.c; measured on 7.3).
public struct RingPolicy: Sendable, Equatable {
    /// The file's name.
    public let name: String
    /// Numbers of `enum io_uring_op`, ascending.
    public let operations: [UInt8]
    /// Numbers of `enum io_uring_register_op`, ascending.
    public let registerOperations: [UInt8]
    /// Bits of `io_uring_sqe.flags`; always FIXED_FILE.
    public let requiredFlags: UInt8
    /// Bits that may be set besides `requiredFlags`.
    public let allowedFlags: UInt8

    /// Parses the file `name`, which `read` delivers, as it does the file that it may include.
    /// `mode` decides which lines are in force; the others must be right all the same.
    public init(
        parsing name: String, for mode: RingMode = RingMode(), read: @escaping PolicyReader
    ) throws(PolicyError) {
        var parser = RingParser(mode: mode, read: read)
        try parser.parse(PolicyFile(name, read: read), isIncluded: false)
        let start = PolicyLocation(file: name, line: 1, column: 1)
        if parser.operations.isEmpty { throw PolicyError(start, "no 'op'; expected at least one") }
        if parser.registerOperations.isEmpty {
            throw PolicyError(
                start, "no 'register'; expected one, such as ENABLE_RINGS: without it kernels from 7.0 allow them all")
        }
        guard parser.required & RingNames.fixedFile != 0 else {
            throw PolicyError(
                start, "no 'flags required FIXED_FILE'; without it a ring can be given any file number")
        }
        self.name = name
        operations = parser.operations.sorted()
        registerOperations = parser.registerOperations.sorted()
        requiredFlags = parser.required
        allowedFlags = parser.allowed
    }

    /// The name of an operation without `IORING_OP_`, for messages; nil for a number above those of Linux 7.3.
    public static func operationName(_ number: UInt8) -> String? {
        RingNames.operations.indices.contains(Int(number)) ? RingNames.operations[Int(number)] : nil
    }
}
