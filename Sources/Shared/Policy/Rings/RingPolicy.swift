/// The mode of a device: how its data and its requests move. A line of a ring policy may be for one mode only.
public struct RingMode: Equatable, Sendable {
    /// `in zero-copy`; otherwise `in copy`.
    public var zeroCopy: Bool
    /// `in batch`.
    public var batch: Bool

    public init(zeroCopy: Bool = false, batch: Bool = false) {
        self.zeroCopy = zeroCopy
        self.batch = batch
    }

    /// All combinations.
    public static let all = [false, true].flatMap { zeroCopy in
        [false, true].map { RingMode(zeroCopy: zeroCopy, batch: $0) }
    }
}

/// The operations that a sealed ring allows: the values for `IORING_REGISTER_RESTRICTIONS`. The files
/// `policy/rings/*.ring` have these lines:
///
///     op NAME                  an operation, IORING_OP_NAME
///     register NAME            a register call, IORING_REGISTER_NAME
///     flags required NAME …    flags that every operation must have, IOSQE_NAME
///     flags allowed NAME …     flags that an operation may have besides
///     @include FILE
///     in MODE …                any of these, only in rings of that mode: copy, zero-copy, batch
///
/// A policy always has an operation, a register call and the required flag FIXED_FILE. Without the flag a submission
/// could use any descriptor. Without a register call Linux 7.0 and later allow all of them (io_uring/register.c;
/// measured on 7.3).
public struct RingPolicy: Sendable, Equatable {
    /// The file's name.
    public let name: String
    /// Numbers of `enum io_uring_op`, ascending.
    public let operations: [UInt8]
    /// Numbers of `enum io_uring_register_op`, ascending.
    public let registerOperations: [UInt8]
    /// Bits of `io_uring_sqe.flags`; always FIXED_FILE.
    public let requiredFlags: UInt8
    /// Flags that may be set in addition to `requiredFlags`.
    public let allowedFlags: UInt8

    /// Parses the file `name`. `read` returns its content and that of a file it includes. Only the lines for `mode`
    /// take effect, but all lines must be valid.
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

    /// The name of an operation without `IORING_OP_`, for messages; nil for a number that Linux 7.3 does not have.
    public static func operationName(_ number: UInt8) -> String? {
        RingNames.operations.indices.contains(Int(number)) ? RingNames.operations[Int(number)] : nil
    }
}
