import BrokerInterface
import Testing

@Suite("The name of a device")
struct DeviceNameTests {
    @Test(
        "is nothing that udev or systemd would change, no path and no option",
        arguments: ["a", "Data-2.old_x", "0", "a..b", String(repeating: "x", count: 32)])
    func names(name: String) throws {
        #expect(DeviceName.isValid(name))
        #expect(try AddPlan(AddRequest(target: "null", name: name)).name == name)
    }

    @Test(
        "is refused when it is anything else",
        arguments: [
            "", ".", "..", "-a", ".a", "_a", "a/b", "a b", "a:b", "a@b", "ä", "a\n", "a\nUBD_OWNER=0", "a\0", "$x",
            "%n",
            "a\\x2f", String(repeating: "x", count: 33),
        ])
    func notNames(name: String) {
        #expect(!DeviceName.isValid(name))
        #expect(throws: InterfaceError.self) { try AddPlan(AddRequest(target: "null", name: name)) }
    }

    @Test("makes a link that no other user can have")
    func links() {
        #expect(DeviceName.link("data", owner: 0) == "data")
        #expect(DeviceName.link("data", owner: 1000) == "1000:data")
        // Root's link is a name, so no name may look like a user's link.
        #expect(!DeviceName.isValid(DeviceName.link("data", owner: 1000)))
    }
}
