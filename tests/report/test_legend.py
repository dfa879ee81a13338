from wsss_jax.report.legend import Legend

LEGEND = Legend(("tumor", "stroma"), ((205, 51, 51), (255, 165, 0), (255, 255, 255)))


def test_entries_have_the_values_of_label_maps():
    assert LEGEND.list_entries() == [((205, 51, 51), "0 tumor"), ((255, 165, 0), "1 stroma")]


def test_the_last_color_is_of_what_is_excluded():
    assert LEGEND.excluded == 2 and LEGEND.palette[LEGEND.excluded] == (255, 255, 255)
