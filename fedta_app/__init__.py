"""The method of fedta, free of Flower: data, models, masks, optimizer, aggregation, records."""
