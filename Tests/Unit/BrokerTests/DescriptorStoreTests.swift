import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("What systemd passes")
struct PassedDescriptorsTests {
    @Test("names of stored sockets are exact", arguments: ["ubd-3-17", "ubd-0-18446744073709551615"])
    func names(_ text: String) { #expect(StoredName(text[...])?.text == text) }

    @Test(
        "nothing else is such a name",
        arguments: [
            "", "ubd", "ubd-3", "ubd-3-", "ubd--17", "ubd-03-17", "ubd-3-+17", "ubd-3-17-", "ubd-4294967296-1",
            "xbd-3-17",
            "ubd-3-18446744073709551616", " ubd-3-17", "ubd-broker.socket",
        ])
    func noNames(_ text: String) { #expect(StoredName(text[...]) == nil) }

    @Test("the listening socket and stored ones are told apart by their names")
    func both() throws {
        let passed = try PassedDescriptors(count: "4", names: "ubd-1-9:ubd-broker.socket:ubd-2-8:ubd-1-9")
        #expect(passed.listener == 4)
        #expect(passed.stored == [StoredName(id: 1, generation: 9): [3, 6], StoredName(id: 2, generation: 8): [5]])
        #expect(try PassedDescriptors(count: "1", names: nil).listener == 3)
        #expect(try PassedDescriptors(count: "0", names: nil) == PassedDescriptors())
    }

    @Test(
        "what does not fit together is refused",
        arguments: [
            ("2", nil), ("2", "ubd-1-9"), ("1", "a:ubd-1-9"), ("2", "a:b"), ("x", "a"), ("+1", "a"), ("-1", "a"),
            ("65537", "a"), ("", ""),
        ] as [(String, String?)])
    func refused(_ count: String, _ names: String?) {
        #expect(throws: StartupRefusal.self) { try PassedDescriptors(count: count, names: names) }
    }

    @Test(
        "the store has room only when systemd says how much",
        arguments: [
            (["NOTIFY_SOCKET": "/run/n", "FDSTORE": "7"], 7), (["FDSTORE": "7"], 0), (["NOTIFY_SOCKET": "/run/n"], 0),
            (["NOTIFY_SOCKET": "/run/n", "FDSTORE": "-7"], 0), (["NOTIFY_SOCKET": "/run/n", "FDSTORE": "7x"], 0),
        ] as [([String: String], Int)])
    func capacity(_ environment: [String: String], _ room: Int) {
        #expect(DescriptorStore.capacity { environment[$0] } == room)
    }
}

@Suite("systemd's store of descriptors")
struct DescriptorStoreTests {
    private final class Systemd {
        var messages: [String] = []
        var hasRoom = true
    }

    private func make(
        _ systemd: Systemd, capacity: Int, _ passed: [StoredName: [Int32]] = [:], _ loop: EventLoop
    ) -> DescriptorStore {
        DescriptorStore(loop: loop, capacity: capacity, passed: passed) { message, descriptor in
            if systemd.hasRoom { systemd.messages.append(message + (descriptor.map { " \($0)" } ?? "")) }
            return systemd.hasRoom
        }
    }

    private let (one, two) = (StoredName(id: 1, generation: 9), StoredName(id: 2, generation: 8))

    private func inode(_ descriptor: Int32) -> UInt64 {
        var status = stat()
        #expect(fstat(descriptor, &status) == 0)
        return UInt64(status.st_ino)
    }

    @Test("a socket is stored once, and no more than there is room for")
    func room() throws {
        let systemd = Systemd()
        let store = make(systemd, capacity: 1, try EventLoop())
        store.keep(one) { 40 }
        store.keep(one) { 40 }
        store.keep(two) { 41 }
        store.drop(two)
        #expect(systemd.messages == ["FDSTORE=1\nFDNAME=ubd-1-9\nFDPOLL=0 40"])
        store.drop(one)
        store.keep(two) { 41 }
        #expect(
            systemd.messages.dropFirst() == [
                "FDSTOREREMOVE=1\nFDNAME=ubd-1-9", "FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 41",
            ])
    }

    @Test("without room nothing is said to systemd")
    func none() throws {
        let systemd = Systemd()
        make(systemd, capacity: 0, try EventLoop()).keep(one) { 40 }
        #expect(systemd.messages.isEmpty)
    }

    @Test("messages that systemd does not take come later, in their order, and with the socket that is there then")
    func later() throws {
        let systemd = Systemd()
        let loop = try EventLoop()
        let store = make(systemd, capacity: 4, loop)
        systemd.hasRoom = false
        var socket: Int32? = 40
        store.keep(one) { socket }
        store.keep(two) { 41 }
        store.drop(two)
        socket = nil
        loop.after(milliseconds: 1) { systemd.hasRoom = true }
        loop.after(milliseconds: 120) { loop.stop() }
        try loop.run()
        #expect(systemd.messages == ["FDSTORE=1\nFDNAME=ubd-2-8\nFDPOLL=0 41", "FDSTOREREMOVE=1\nFDNAME=ubd-2-8"])
    }

    @Test("a passed socket is taken by its name and inode only")
    func take() throws {
        let systemd = Systemd()
        let pair = try makeMessagePair()
        let passed = try FileDescriptor.duplicate(of: pair.first.raw).release()
        let store = make(systemd, capacity: 4, [one: [passed]], try EventLoop())
        #expect(store.take(two, inode: inode(passed)) == nil)
        #expect(store.take(one, inode: inode(pair.second.raw)) == nil)
        let taken = store.take(one, inode: inode(passed))
        #expect(taken?.raw == passed)
        store.keep(one) { passed }
        #expect(systemd.messages.isEmpty, "it is in the store")
    }

    @Test("of passed sockets those without a device leave the store")
    func settle() throws {
        let systemd = Systemd()
        let (pair, other) = (try makeMessagePair(), try makeMessagePair())
        let wanted = inode(pair.first.raw)
        let copies = [
            try FileDescriptor.duplicate(of: pair.first.raw).release(),
            try FileDescriptor.duplicate(of: other.first.raw).release(),
            try FileDescriptor.duplicate(of: other.second.raw).release(),
        ]
        let three = StoredName(id: 3, generation: 7)
        let store = make(
            systemd, capacity: 4, [one: [copies[0]], two: [copies[1]], three: [copies[2]]], try EventLoop())
        let needless = store.settle { $0 == one ? wanted : $0 == three ? 0 : nil }
        #expect(needless == [copies[1]])
        #expect(systemd.messages == ["FDSTOREREMOVE=1\nFDNAME=ubd-2-8"])
        #expect(fcntl(copies[0], F_GETFD) == -1, "its device has it")
        #expect(store.take(three, inode: inode(copies[2])) != nil, "its device may need it later")
        close(copies[1])
    }
}
