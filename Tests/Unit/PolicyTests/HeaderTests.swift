import CPolicyHeaders
import Testing

@testable import Policy

@Suite("The tables of names and the C headers")
struct HeaderTests {
    private func entries(_ table: policy_header_table) -> [(name: String, value: UInt64)] {
        UnsafeBufferPointer(start: table.names, count: table.count).map { (String(cString: $0.name), $0.value) }
    }

    @Test("every constant of seccomp policies has the headers' value, and none is left out")
    func constants() {
        let header = entries(policy_constants())
        #expect(Dictionary(uniqueKeysWithValues: header) == SystemConstants.values)
    }

    @Test("every errno has the headers' value")
    func errnos() {
        let header = entries(policy_errnos())
        #expect(Dictionary(uniqueKeysWithValues: header) == SystemConstants.errnos.mapValues { UInt64($0) })
    }

    @Test("operations, register calls and flags have the numbers of linux/io_uring.h, as far as this host's goes")
    func ringNames() {
        for (header, names) in [
            (entries(policy_ring_operations()), RingNames.operations),
            (
                entries(policy_ring_register_operations()),
                RingNames.registerOperations
            ),
            (entries(policy_ring_flag_bits()), RingNames.flags),
        ] {
            #expect(header.map(\.name) == Array(names.prefix(header.count)))
            #expect(header.map(\.value) == (0..<UInt64(header.count)).map { $0 })
        }
    }
}
