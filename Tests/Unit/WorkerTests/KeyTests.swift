import Glibc
import KernelABI
import Testing

@testable import Worker

@Suite("A request's key")
struct RequestKeyTests {
    @Test("keeps tag and kind apart", arguments: [UInt16(0), 1, 4095, 0xffff])
    func packing(tag: UInt16) {
        let kinds: [RequestKey.Kind] = [.command, .data, .control, .probe, .list, .own]
        for kind in kinds {
            let key = RequestKey(rawValue: RequestKey(tag: tag, kind).rawValue)
            #expect(key.tag == tag)
            for other in kinds { #expect(key.isKind(other) == (other == kind)) }
            #expect(key.isCommand == (kind == .command))
        }
    }

    @Test("brings slot and data back beside them, each in bits of its own")
    func slotAndData() {
        for (tag, slot, data) in [(0, 0, 0), (0xffff, 0, 0), (0, 0xff, 0), (0, 0, .max), (0xffff, 0xff, .max)]
            as [(UInt16, UInt8, UInt32)]
        {
            for kind in [RequestKey.Kind.command, .data, .control, .probe, .list, .own] {
                let key = RequestKey(tag: tag, kind, slot: slot, data: data)
                #expect(key.tag == tag && key.slot == slot && key.data == data && key.isKind(kind))
                #expect(
                    key.rawValue == UInt64(tag) | UInt64(kind.rawValue) << 16 | UInt64(slot) << 24 | UInt64(data) << 32)
            }
        }
        let own = RequestKey(ownSlot: 3, data: 9)
        #expect(!own.isCommand && own.isKind(.own) && own.tag == 0 && own.slot == 3 && own.data == 9)
    }

    @Test("without slot and data is the same number as in slot 0")
    func slotZero() {
        #expect(RequestKey(tag: 17, .data, slot: 0) == RequestKey(tag: 17, .data))
        #expect(RequestKey(tag: 17, .data).rawValue == 0x1_0011)
        #expect(RequestKey(tag: 17, .control).rawValue == 0x2_0011)
    }

    @Test("of a command is just the tag")
    func command() {
        #expect(RequestKey(tag: 17, .command).rawValue == 17)
    }
}

@Suite("An outcome")
struct OutcomeTests {
    @Test("is never taken for a pending one")
    func pending() {
        #expect(Outcome.done(0) != .pending)
        #expect(Outcome.done(UInt32(UblkLimits.maxIOBytes)) != .pending)
        #expect(Outcome.failed(EIO) != .pending)
        #expect(Outcome.failed(EIO).rawValue == -EIO)
    }
}

@Suite("A disk's bounds")
struct DiskBoundsTests {
    let bounds = DiskBounds(size: 1 << 20, maxIOBytes: 65536)

    private func range(_ start: UInt64, _ sectors: UInt32) -> UblkIODescriptor {
        UblkIODescriptor(operationAndFlags: 0, sectors: sectors, startSector: start)
    }

    @Test("hold what lies on the disk")
    func inside() {
        #expect(bounds.contains(range(0, 2048)))
        #expect(bounds.contains(range(2048, 0)))
        #expect(bounds.contains(range(2047, 1)))
        #expect(bounds.containsData(range(0, 128)))
    }

    @Test("refuse what goes beyond the end, by any arithmetic")
    func outside() {
        #expect(!bounds.contains(range(2048, 1)))
        #expect(!bounds.contains(range(2049, 0)))
        #expect(!bounds.contains(range(.max, 1)))
        #expect(!bounds.contains(range(.max - 10, .max)))
        #expect(!bounds.contains(range(0, .max)))
    }

    @Test("refuse data that is larger than a request's buffer")
    func tooMuch() {
        #expect(!bounds.containsData(range(0, 129)))
    }
}
