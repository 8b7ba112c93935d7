import Policy
import Testing

@Suite("The grammar of ring policies")
struct RingGrammarTests {
    private static let rest = "\nregister ENABLE_RINGS\nflags required FIXED_FILE\n"

    @Test("operations, register calls and flags become the kernel's numbers, in order")
    func numbers() throws {
        let policy = try ring(
            "op WRITE # 23\nop URING_CMD\n op READ\nregister ENABLE_RINGS\nregister UNREGISTER_FILES\n"
                + "flags required FIXED_FILE\nflags allowed ASYNC IO_LINK")
        #expect(policy.operations == [22, 23, 46])
        #expect(policy.registerOperations == [3, 12])
        #expect(policy.requiredFlags == 1)
        #expect(policy.allowedFlags == 0b10100)
        #expect(RingPolicy.operationName(46) == "URING_CMD")
        #expect(RingPolicy.operationName(65) == nil)
    }

    @Test("a line for one mode is in force in that mode only")
    func modes() throws {
        let text =
            "op NOP\nin copy op READ\nin zero-copy op READ_FIXED\nin batch flags allowed BUFFER_SELECT" + Self.rest
        func policy(_ mode: RingMode) throws -> RingPolicy { try ring(text, for: mode) }
        #expect(try policy(RingMode()).operations == [0, 22])
        #expect(try policy(RingMode()).allowedFlags == 0)
        #expect(try policy(RingMode(batch: true)).operations == [0, 22])
        #expect(try policy(RingMode(batch: true)).allowedFlags == 1 << 5)
        #expect(try policy(RingMode(zeroCopy: true)).operations == [0, 4])
        #expect(try policy(RingMode(zeroCopy: true)).allowedFlags == 0)
        #expect(try policy(RingMode(zeroCopy: true, batch: true)).operations == [0, 4])
        #expect(try policy(RingMode(zeroCopy: true, batch: true)).allowedFlags == 1 << 5)
    }

    @Test("an included file adds to the policy")
    func include() throws {
        #expect(try ring("@include b.ring\nop READ", include: "op NOP" + Self.rest).operations == [0, 22])
    }

    @Test(
        "what is not in the grammar is refused at its line and column, with what was expected",
        arguments: [
            ("", "1:1 no 'op'; expected at least one"),
            (
                "op READ\nflags required FIXED_FILE",
                "1:1 no 'register'; expected one, such as ENABLE_RINGS: without it kernels from 7.0 allow them all"
            ),
            (
                "op READ\nregister ENABLE_RINGS\nflags allowed FIXED_FILE",
                "1:1 no 'flags required FIXED_FILE'; without it a ring can be given any file number"
            ),
            (
                "op",
                "1:3 found the end of the line; expected one name of Linux 7.3's linux/io_uring.h without IORING_OP_"
            ),
            ("op READS", "1:4 found 'READS'; expected one name of Linux 7.3's linux/io_uring.h without IORING_OP_"),
            ("op read", "1:4 found 'read'; expected one name of Linux 7.3's linux/io_uring.h without IORING_OP_"),
            ("op 22", "1:4 found '22'; expected one name of Linux 7.3's linux/io_uring.h without IORING_OP_"),
            ("op READ WRITE", "1:9 found 'WRITE'; expected the end of the line after READ"),
            ("opREAD", "1:1 found 'opREAD'; expected op, register, flags, in or @include"),
            ("allow READ", "1:1 found 'allow READ'; expected op, register, flags, in or @include"),
            ("op READ\n  op READ", "2:6 READ is in the policy already"),
            ("op NOP\n@include b.ring", "1:4 NOP is in the policy already"),
            (
                "register READ",
                "1:10 found 'READ'; expected one name of Linux 7.3's linux/io_uring.h without IORING_REGISTER_"
            ),
            ("register FILES\nregister FILES", "2:10 FILES is in the policy already"),
            ("flags FIXED_FILE", "1:7 found 'FIXED_FILE'; expected 'required' or 'allowed' after 'flags'"),
            (
                "flags required",
                "1:15 found the end of the line; expected a flag: FIXED_FILE, IO_DRAIN, IO_LINK, IO_HARDLINK, ASYNC, BUFFER_SELECT, CQE_SKIP_SUCCESS"
            ),
            (
                "flags allowed ASYNC, IO_LINK",
                "1:20 found ', IO_LINK'; expected a flag: FIXED_FILE, IO_DRAIN, IO_LINK, IO_HARDLINK, ASYNC, BUFFER_SELECT, CQE_SKIP_SUCCESS"
            ),
            ("flags required FIXED_FILE\nflags allowed FIXED_FILE", "2:15 FIXED_FILE is in the policy already"),
            ("@include b.ring extra", "1:17 found 'extra'; expected the end of the line after @include b.ring"),
            ("in direct op READ", "1:3 found ' direct op READ'; expected copy, zero-copy or batch after 'in'"),
            ("in batch", "1:9 found the end of the line; expected op, register or flags"),
            ("in batch in copy op READ", "1:10 found 'in copy op READ'; expected op, register or flags"),
            ("in batch @include b.ring", "1:10 found '@include b.ring'; expected op, register or flags"),
            (
                "in zero-copy op READS",
                "1:17 found 'READS'; expected one name of Linux 7.3's linux/io_uring.h without IORING_OP_"
            ),
            ("@include c.ring", "1:10 cannot read 'c.ring': no such file"),
        ])
    func refusals(text: String, expected: String) {
        #expect(refusal { () throws(PolicyError) in _ = try ring(text, include: "op NOP") } == expected)
    }

    @Test("an included file may not include another")
    func nesting() {
        #expect(
            refusal { () throws(PolicyError) in _ = try ring("@include b.ring", include: "@include a.ring") }
                == "1:1 an included file includes another; expected rules only (includes go one level deep)")
    }
}
